"""The auxiliary loss of mixtures of experts. Shapes: n rows, c experts, j experts of a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def load_balancing_loss(
    router_logits: Sequence[Tensor], chosen: int, counted_n: Tensor | None = None
) -> Tensor:
    """c · Σ_c f_c · P_c (Fedus et al. 2021, equations 4 to 6), in float32: f_c is how many experts
    of a row are c on average, P_c the mean of its probability; `chosen`, its least, where all are
    equally likely.

    router_logits: of each layer with experts, [n, c], over whose rows together the averages are
    taken, as transformers does. counted_n: the rows that count, bool; None: all.
    """
    probabilities = [logits_nc.softmax(-1, dtype=torch.float32) for logits_nc in router_logits]
    if counted_n is not None:
        probabilities = [p_nc[counted_n] for p_nc in probabilities]
    p_mc = torch.cat(probabilities)
    experts_mj = p_mc.topk(chosen, dim=-1).indices
    count, rows = p_mc.shape[1], max(1, p_mc.shape[0])
    share_c = experts_mj.flatten().bincount(minlength=count).float() / rows
    return count * (share_c * (p_mc.sum(0) / rows)).sum()
