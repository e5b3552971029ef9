"""The loss that balances experts, as the `config.json` of families with them says it."""

from __future__ import annotations

from typing import Any

from plinth.models.hf_file import ConfigFile
from plinth.models.parts import Experts


def read_balance(file: ConfigFile) -> dict[str, Any]:
    """Fields of Experts. transformers adds the loss where router logits are asked for."""
    return {
        "balanced": file.flag("output_router_logits", False),
        "balance": file.real("experts.balance", "router_aux_loss_coef", 0.001),
    }


def write_balance(experts: Experts) -> dict[str, Any]:
    """The keys that `read_balance` reads."""
    return {"output_router_logits": experts.balanced, "router_aux_loss_coef": experts.balance}
