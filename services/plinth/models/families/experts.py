"""Mixtures of experts as the files of families with them say them: the loss that balances them in
`config.json`, all of them in GGUF."""

from __future__ import annotations

from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
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


def gguf_experts(file: GgufFile, width: str) -> Experts:
    """width: the key of one expert's features. llama.cpp takes these architectures' chosen weights
    to sum to 1."""
    count = file.size("experts.count", "expert_count")
    chosen = file.size("experts.chosen", "expert_used_count")
    for key, value in (("expert_gating_func", 1), ("expert_weights_norm", True)):
        file.must_be(key, value, "a softmax whose chosen weights are made to sum to 1")
    return Experts(count, chosen, file.size("experts.width", width))
