"""What families with experts have in common."""

from __future__ import annotations

from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.hf_file import ConfigFile
from plinth.models.parts import Experts
from plinth.shared.errors import InvalidArgument


def read_balance(file: ConfigFile) -> dict[str, Any]:
    """Fields of Experts. transformers adds the loss where router logits are asked for."""
    return {
        "balanced": file.flag("output_router_logits", False),
        "balance": file.real("experts.balance", "router_aux_loss_coef", 0.001),
    }


def write_balance(experts: Experts) -> dict[str, Any]:
    """The keys that `read_balance` reads."""
    return {"output_router_logits": experts.balanced, "router_aux_loss_coef": experts.balance}


def experts_of(config: ModelConfig) -> Experts:
    """InvalidArgument for a model without any, which the family can't say."""
    if config.experts is None:
        raise InvalidArgument(
            f"model config: experts is None, which no config.json of {config.family!r} says",
            field="experts",
        )
    return config.experts
