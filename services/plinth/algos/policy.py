"""Policy gradients for language: advantages, clipped losses, KL. Pure functions of tensors.

Shapes: b answers, t token positions; `valid_bt` is True where an answer has a token. What stands
at other positions never matters, be it NaN. Losses are sums over valid tokens: the caller divides
by the tokens of the *global* batch, so that workers and micro-batches do not change the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EPS = 1e-8


# -- KL to a reference ---------------------------------------------------------------------------


def kl_estimate(logprobs_bt: Tensor, reference_bt: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) on the policy's own samples (Schulman 2020).

    "k1": log π/π_ref, unbiased and noisy; "k2": half its square, biased, low variance;
    "k3": (r - 1) - log r with r = π_ref/π, unbiased and never negative.

    Values are one thing, gradients another (Liu et al. 2025, "Rethinking KL regularization in
    RLHF"; Shah et al. 2025, "A comedy of estimators"). In expectation over the policy's samples,
    in the loss: k1's gradient is zero, k2's is that of KL(policy ‖ reference), k3's that of
    KL(reference ‖ policy). As a cost in the reward, where none flows through the value: k1 gives
    the gradient of KL(policy ‖ reference); k2 and k3, which are never negative, push down what is
    rarer than in the reference as well, and so hold nothing.
    """
    log_ratio_bt = logprobs_bt - reference_bt
    if estimator == "k1":
        return log_ratio_bt
    if estimator == "k2":
        return 0.5 * log_ratio_bt.square()
    if estimator == "k3":
        return torch.expm1(-log_ratio_bt) + log_ratio_bt
    raise ValueError(f"estimator {estimator!r}; there are k1, k2 and k3")


@dataclass
class AdaptiveKl:
    """A proportional controller of the KL coefficient (Ziegler et al. 2019, section 2.2)."""

    coefficient: float
    target: float  # nats per answer
    horizon: int = 10_000  # answers

    def update(self, kl: float, answers: int) -> None:
        """After a batch of `answers` whose mean KL was `kl` nats per answer."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * answers / self.horizon


def token_rewards(scores_b: Tensor, kl_bt: Tensor, valid_bt: Tensor, coefficient: float) -> Tensor:
    """-coefficient · KL at each token, and the answer's score at its last (Ouyang et al. 2022)."""
    rewards_bt = torch.where(valid_bt, -coefficient * kl_bt, 0.0)
    last_b = valid_bt.long().cumsum(1).argmax(1)
    return rewards_bt.scatter_add(1, last_b[:, None], scores_b[:, None].to(rewards_bt.dtype))


# -- Advantages ----------------------------------------------------------------------------------


def gae(
    rewards_bt: Tensor,
    values_bt: Tensor,
    valid_bt: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap_b: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), each [b, t] (Schulman et al. 2016, eq. 16). Answers are contiguous.

    bootstrap_b: the value beyond the last token of an answer that was cut off by length; zero (or
    None) for one that ended by itself.
    """
    b, t = rewards_bt.shape
    values_bt = torch.where(valid_bt, values_bt, 0.0)
    next_value_b = bootstrap_b if bootstrap_b is not None else values_bt.new_zeros(b)
    advantage_b = values_bt.new_zeros(b)
    columns = []
    for i in range(t - 1, -1, -1):
        here_b = valid_bt[:, i]
        delta_b = rewards_bt[:, i] + gamma * next_value_b - values_bt[:, i]
        advantage_b = torch.where(here_b, delta_b + gamma * lam * advantage_b, advantage_b)
        next_value_b = torch.where(here_b, values_bt[:, i], next_value_b)
        columns.append(torch.where(here_b, advantage_b, 0.0))
    advantages_bt = torch.stack(columns[::-1], 1)
    return advantages_bt, advantages_bt + values_bt


def whiten(x_bt: Tensor, valid_bt: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Unit variance over all valid tokens of the whole batch; zero mean unless `shift_mean` is off.

    The variance is the sample's (n - 1), as in TRL.
    """
    valid = x_bt[valid_bt]
    mean = valid.mean()
    variance = (valid - mean).square().sum() / max(1, valid.numel() - 1)
    white_bt = (x_bt - mean) * torch.rsqrt(variance + _EPS)
    return torch.where(valid_bt, white_bt if shift_mean else white_bt + mean, 0.0)


def group_advantages(scores_b: Tensor, group: int, *, by_std: bool = True) -> Tensor:
    """GRPO's advantages, [b]: each score against the mean of its group (Shao et al. 2024).

    scores_b: `group` consecutive answers belong to one prompt. by_std: divide by the group's
    standard deviation; off, a prompt of little spread counts little (Liu et al. 2025, Dr. GRPO).
    A group whose scores are all equal teaches nothing: its advantages are zero.
    """
    scores_pg = scores_b.view(-1, group)
    centred_pg = scores_pg - scores_pg.mean(1, keepdim=True)
    if by_std:
        std_p1 = scores_pg.std(1, keepdim=True)
        centred_pg = torch.where(std_p1 > 0, centred_pg / (std_p1 + 1e-4), 0.0)
    return centred_pg.reshape(-1)


def leave_one_out_advantages(scores_b: Tensor, group: int) -> Tensor:
    """RLOO's, [b]: each score against the mean of its group's others (Ahmadian et al. 2024)."""
    if group < 2:
        raise ValueError("leave-one-out needs at least two answers to a prompt")
    scores_pg = scores_b.view(-1, group)
    others_pg = (scores_pg.sum(1, keepdim=True) - scores_pg) / (group - 1)
    return (scores_pg - others_pg).reshape(-1)


# -- Losses --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyTerms:
    """Sums over valid tokens, but for `loss_bt`, which is zero elsewhere."""

    loss_bt: Tensor
    clipped: Tensor  # tokens whose ratio was clipped
    kl_to_old: Tensor  # k3 estimate of KL(old ‖ new)


def clipped_policy_loss(
    logprobs_bt: Tensor,
    old_bt: Tensor,
    advantages_bt: Tensor,
    valid_bt: Tensor,
    *,
    low: float = 0.2,
    high: float | None = None,
    weights_bt: Tensor | None = None,
) -> PolicyTerms:
    """PPO's clipped surrogate, negated (Schulman et al. 2017, eq. 7).

    high: the upper clip where it differs from the lower (Yu et al. 2025, "clip-higher").
    weights_bt: truncated importance weights of off-policy samples; no gradient flows through them.
    """
    # Masked before, not after: 0 · NaN would come back as a gradient.
    log_ratio_bt = torch.where(valid_bt, logprobs_bt - old_bt, 0.0)
    advantages_bt = torch.where(valid_bt, advantages_bt, 0.0)
    ratio_bt = log_ratio_bt.exp()
    inside_bt = ratio_bt.clamp(1 - low, 1 + (low if high is None else high))
    free_bt, held_bt = -advantages_bt * ratio_bt, -advantages_bt * inside_bt
    loss_bt = torch.maximum(free_bt, held_bt)
    if weights_bt is not None:
        loss_bt = loss_bt * torch.where(valid_bt, weights_bt.detach(), 0.0)
    with torch.no_grad():
        clipped = (held_bt > free_bt).sum()
        kl = (ratio_bt - 1 - log_ratio_bt).sum()
    return PolicyTerms(loss_bt, clipped, kl)


def clipped_value_loss(
    values_bt: Tensor, old_bt: Tensor, returns_bt: Tensor, valid_bt: Tensor, clip: float = 0.2
) -> Tensor:
    """½ max of the squared errors of the value and of the value clipped to `old` ± clip, [b, t].

    Zero where not valid. (OpenAI baselines' PPO2; detail 9 of Huang et al. 2024.)
    """
    values_bt, old_bt, returns_bt = (
        torch.where(valid_bt, x_bt, 0.0) for x_bt in (values_bt, old_bt, returns_bt)
    )
    held_bt = old_bt + (values_bt - old_bt).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_bt - returns_bt).square(), (held_bt - returns_bt).square())


def entropy(logits_mv: Tensor) -> Tensor:
    """Entropy in nats of each row's distribution, [m]."""
    logp_mv = logits_mv.float().log_softmax(-1)
    return -(logp_mv.exp() * logp_mv).sum(-1)


def truncated_weights(trainer_bt: Tensor, sampler_bt: Tensor, cap: float = 2.0) -> Tensor:
    """min(π_trainer / π_sampler, cap) per token: off-policy correction (Espeholt et al. 2018)."""
    return (trainer_bt - sampler_bt).exp().clamp(max=cap)


def normalised(
    loss_bt: Tensor, valid_bt: Tensor, how: str, *, tokens: float, answers: float, longest: int
) -> Tensor:
    """The sum of `loss_bt` as a mean, by an explicit choice of what long answers weigh.

    "tokens": over all tokens of the global batch (Yu et al. 2025); "answers": first over each
    answer's own tokens (Shao et al. 2024: a long wrong answer is punished less per token);
    "constant": over answers × `longest` (Liu et al. 2025). tokens, answers: of the global batch.
    """
    if how == "tokens":
        return loss_bt.sum() / tokens
    if how == "answers":
        return (loss_bt.sum(1) / valid_bt.sum(1).clamp(min=1)).sum() / answers
    if how == "constant":
        return loss_bt.sum() / (answers * longest)
    raise ValueError(f"normalisation {how!r}; there are tokens, answers and constant")
