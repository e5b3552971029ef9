"""Losses on pairs: which of two answers is better. Shapes: b pairs.

Log-probabilities are summed over the answer's tokens unless a function says otherwise; every loss
is returned per pair, so that the caller averages over the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogprobs:
    """log p(answer | prompt) of the preferred and the other answer, each [b]."""

    chosen_b: Tensor
    rejected_b: Tensor


def bradley_terry_loss(
    chosen_b: Tensor,
    rejected_b: Tensor,
    *,
    margin_b: Tensor | None = None,
    label_smoothing: float = 0.0,
    centring: float = 0.0,
) -> Tensor:
    """-log P(chosen beats rejected) of two scores, [b] (Ouyang et al. 2022, eq. 1).

    margin_b: by how much the chosen one must win (Touvron et al. 2023, Llama 2, eq. 2).
    label_smoothing: the probability that a label is wrong, 0 to 0.5.
    centring: weight of (r_c + r_r)², which pins the scores' mean to zero (Eisenstein et al. 2023).
    """
    lead_b = chosen_b - rejected_b
    if margin_b is not None:
        lead_b = lead_b - margin_b
    loss_b = _smoothed(lead_b, label_smoothing)
    return loss_b + centring * (chosen_b + rejected_b).square() if centring else loss_b


def dpo_loss(
    policy: PairLogprobs, reference: PairLogprobs, beta: float, *, label_smoothing: float = 0.0
) -> Tensor:
    """Direct preference optimisation, [b] (Rafailov et al. 2023, eq. 7).

    label_smoothing ε makes it conservative DPO (Mitchell 2023): each label is wrong with ε.
    """
    return _smoothed(beta * log_ratio_lead(policy, reference), label_smoothing)


def ipo_loss(policy: PairLogprobs, reference: PairLogprobs, beta: float) -> Tensor:
    """Identity preference optimisation, [b] (Azar et al. 2023, eq. 17): regress the lead on 1/2β.

    Takes log-probabilities *averaged* over tokens, as TRL does: sums tie the target to length.
    """
    return (log_ratio_lead(policy, reference) - 1 / (2 * beta)).square()


def log_ratio_lead(policy: PairLogprobs, reference: PairLogprobs) -> Tensor:
    """h = log π/π_ref of the chosen answer, less that of the rejected one, [b]."""
    chosen_b = policy.chosen_b - reference.chosen_b
    rejected_b = policy.rejected_b - reference.rejected_b
    return chosen_b - rejected_b


def _smoothed(lead_b: Tensor, epsilon: float) -> Tensor:
    loss_b = -(1 - epsilon) * F.logsigmoid(lead_b)
    return loss_b - epsilon * F.logsigmoid(-lead_b) if epsilon else loss_b
