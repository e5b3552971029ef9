"""Losses over logits. Shapes: m rows, v vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_nll_sum(logits_mv: Tensor, targets_m: Tensor) -> Tensor:
    """Sum of -log p(target) in nats, in float32; the caller divides by the tokens of its batch.

    A sum, since an average over micro-batches of unequal token counts is not the average over
    tokens.
    """
    return F.cross_entropy(logits_mv.float(), targets_m, reduction="sum")
