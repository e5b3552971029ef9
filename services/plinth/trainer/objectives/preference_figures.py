"""What DPO tells of the held-out pairs, and when it ends a run: likelihood displacement.

DPO raises the *difference* of two log-probabilities. Both may fall, as long as the rejected
answer's falls faster (Pal et al. 2024, https://arxiv.org/abs/2402.13228; Razin et al. 2024,
https://arxiv.org/abs/2410.08847), and then loss and accuracy are at their best while the model says
neither. So the preferred answers' own log-probability is told, and bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from plinth.algos.intervals import wilson
from plinth.shared.errors import FailedPrecondition
from plinth.shared.objectives import OBJECTIVES
from plinth.trainer.objectives.pairs import PairOptions


@dataclass
class PairSums:
    """Sums over held-out pairs; log-probabilities are those of whole answers, in nats."""

    pairs: float = 0.0
    loss: float = 0.0
    wins: float = 0.0  # pairs whose log-ratio prefers the right answer; ties as half
    fallen: float = 0.0  # pairs whose preferred answer became less likely
    chosen_tokens: float = 0.0
    rejected_tokens: float = 0.0
    chosen_before: float = 0.0
    chosen: float = 0.0
    rejected_before: float = 0.0
    rejected: float = 0.0
    chosen_reward: float = 0.0  # β · the log-ratio, as the loss scales it
    rejected_reward: float = 0.0

    def add(
        self, before_sb: Tensor, now_sb: Tensor, tokens_sb: Tensor, loss_b: Tensor, beta: Tensor
    ) -> None:
        """A batch: sums over answers, [2, b], the preferred ones first. beta: times a sum, what
        the loss takes as reward, [2, b]."""
        change_sb = now_sb - before_sb
        rewards_sb = beta * change_sb
        lead_b = rewards_sb[0] - rewards_sb[1]
        self.pairs += len(loss_b)
        self.loss += float(loss_b.sum())
        self.wins += float((lead_b > 0).sum() + 0.5 * (lead_b == 0).sum())
        self.fallen += float((change_sb[0] < 0).sum())
        self.chosen_tokens, self.rejected_tokens = _plus(
            self.chosen_tokens, self.rejected_tokens, tokens_sb
        )
        self.chosen_before, self.rejected_before = _plus(
            self.chosen_before, self.rejected_before, before_sb
        )
        self.chosen, self.rejected = _plus(self.chosen, self.rejected, now_sb)
        self.chosen_reward, self.rejected_reward = _plus(
            self.chosen_reward, self.rejected_reward, rewards_sb
        )

    def to_list(self) -> list[float]:
        """What workers add up."""
        return list(asdict(self).values())

    @classmethod
    def from_list(cls, values: Sequence[float]) -> PairSums:
        return cls(*values)

    def figures(self) -> dict[str, float]:
        """By name, as docs/objectives.md explains them; log-probabilities per token."""
        low, high = wilson(self.wins, int(self.pairs))
        chosen, rejected = self.chosen_tokens, self.rejected_tokens
        return {
            "validation_pairs": self.pairs,
            "validation_loss": self.loss / self.pairs,
            "validation_accuracy": self.wins / self.pairs,
            "validation_accuracy_low": low,
            "validation_accuracy_high": high,
            "validation_reward_chosen": self.chosen_reward / self.pairs,
            "validation_reward_rejected": self.rejected_reward / self.pairs,
            "validation_reward_margin": (self.chosen_reward - self.rejected_reward) / self.pairs,
            "validation_chosen_logprob_before": self.chosen_before / chosen,
            "validation_chosen_logprob": self.chosen / chosen,
            "validation_rejected_logprob_before": self.rejected_before / rejected,
            "validation_rejected_logprob": self.rejected / rejected,
            "validation_chosen_fallen": self.fallen / self.pairs,
        }


def _plus(chosen: float, rejected: float, both_sb: Tensor) -> tuple[float, float]:
    sums_s = both_sb.double().sum(1).tolist()
    return chosen + sums_s[0], rejected + sums_s[1]


def check_displacement(sums: PairSums, options: PairOptions) -> None:
    """FailedPrecondition (LIKELIHOOD_DISPLACEMENT) where the held-out preferred answers lost more
    than `max_chosen_drop` nats per token, all their tokens together."""
    before, now = sums.chosen_before / sums.chosen_tokens, sums.chosen / sums.chosen_tokens
    limit = options.max_chosen_drop
    if not limit or not before - now > limit:  # (what is no number the loop refuses)
        return
    rate = OBJECTIVES["dpo"]
    raise FailedPrecondition(
        f"the held-out preferred answers themselves became unlikely: from {before:.2f} to "
        f"{now:.2f} nats per token, a fall of {before - now:.2f}; {limit:g} is the bound "
        f"(pairs.max_chosen_drop, 0 is off). Of the pairs {sums.wins / sums.pairs:.0%} are ordered "
        "rightly, and the model says neither answer any more: lower the learning rate first "
        f"({rate.default_rate(adapter=False):g} is the default, "
        f"{rate.default_rate(adapter=True):g} for an adapter, and models of some millions bear "
        f"2e-4), take fewer steps, or raise pairs.likelihood_weight (now "
        f"{options.likelihood_weight:g}) or pairs.beta (now {options.beta:g})",
        reason="LIKELIHOOD_DISPLACEMENT",
    )
