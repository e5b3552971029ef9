"""Choosing among several answers to one prompt, by their rewards or by their agreement.

Best-of-n (Stiennon et al. 2020; Nakano et al. 2021), the best k of n for rejection sampling
(Touvron et al. 2023, section 3.2.3), preference pairs out of scores, and voting (Wang et al. 2023,
"self-consistency"; weighted by a verifier as in Li et al. 2023). Pure Python: indices in, indices
out. Where two are equal the earlier one comes first, so that a choice never depends on anything
but its input.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from plinth.shared.errors import InvalidArgument

Answer = TypeVar("Answer", bound=Hashable)


def best_of(rewards: Sequence[float]) -> int:
    """Index of the highest reward."""
    return top_k(rewards, 1)[0]


def top_k(rewards: Sequence[float], k: int) -> list[int]:
    """Indices of the k highest rewards, best first; all of them where there are fewer.

    InvalidArgument: no rewards, one that is not finite, or k below 1.
    """
    _check(rewards)
    if k < 1:
        raise InvalidArgument(f"k is {k}, must be at least 1", field="k")
    return sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))[:k]


def extremes(
    rewards: Sequence[float], min_gap: float = 0.0, likelihoods: Sequence[float] | None = None
) -> tuple[int, int] | None:
    """(best, worst), if their rewards lie more than `min_gap` apart.

    likelihoods: one for each; of equal rewards the likeliest is the best and the least likely the
    worst, so that what is learned leans towards the model's own language. Without, the earlier one
    is taken.
    """
    order = top_k(rewards, len(rewards) or 1)
    best, last = order[0], rewards[order[-1]]
    worst = next(i for i in order if rewards[i] == last)
    if likelihoods is not None:
        _check(likelihoods)
        best = max(order, key=lambda i: (rewards[i], likelihoods[i], -i))
        worst = min(order, key=lambda i: (rewards[i], likelihoods[i], i))
    return (best, worst) if rewards[best] - last > _checked_gap(min_gap) else None


def all_pairs(rewards: Sequence[float], min_gap: float = 0.0) -> list[tuple[int, int]]:
    """Every (better, worse) more than `min_gap` apart; widest gaps first."""
    _check(rewards)
    least = _checked_gap(min_gap)
    n = range(len(rewards))
    found = [(i, j) for i in n for j in n if rewards[i] - rewards[j] > least]
    return sorted(found, key=lambda pair: (rewards[pair[1]] - rewards[pair[0]], pair))


@dataclass(frozen=True)
class Vote(Generic[Answer]):
    """The answer that won, its share of all weight that was cast, and who gave it."""

    answer: Answer
    share: float
    voters: tuple[int, ...]


def vote(
    answers: Sequence[Answer | None], weights: Sequence[float] | None = None
) -> Vote[Answer] | None:
    """The answer with the most weight; None when nobody gave one. See `votes`."""
    cast = votes(answers, weights)
    return cast[0] if cast else None


def votes(
    answers: Sequence[Answer | None], weights: Sequence[float] | None = None
) -> list[Vote[Answer]]:
    """Every answer that has any weight, most first; each sample counts one without `weights`.

    None among `answers` is a sample from which no answer could be read: it has no vote.
    InvalidArgument: weights that are negative or not finite, or not one for each answer.
    """
    cast = [1.0] * len(answers) if weights is None else [float(w) for w in weights]
    if len(cast) != len(answers):
        raise InvalidArgument(f"{len(cast)} weights for {len(answers)} answers", field="weights")
    for number, weight in enumerate(cast):
        if not 0 <= weight < math.inf:
            raise InvalidArgument(
                f"weight {number} is {weight}, must be 0 or more; turn rewards into weights first "
                "(`softmax`, or a probability of being right)",
                field="weights",
            )
    voters: dict[Answer, list[int]] = {}
    for number, answer in enumerate(answers):
        if answer is not None and cast[number] > 0:
            voters.setdefault(answer, []).append(number)
    # fsum: the winner does not depend on the order of summation.
    totals = {answer: math.fsum(cast[i] for i in who) for answer, who in voters.items()}
    whole = math.fsum(totals.values())
    order = sorted(totals, key=lambda answer: (-totals[answer], voters[answer][0]))
    return [Vote(answer, totals[answer] / whole, tuple(voters[answer])) for answer in order]


def softmax(scores: Sequence[float]) -> list[float]:
    """Weights that add up to 1: exp(s_i) / sum of exp(s_j).

    Of mean log-probabilities per token these are the length-normalised likelihoods of Wang et al.
    2023, equation 1, up to a factor that all share. Of Bradley-Terry rewards they are each
    answer's chance to be the best of all (Plackett-Luce). InvalidArgument as in `top_k`.
    """
    _check(scores)
    highest = max(scores)
    raised = [math.exp(score - highest) for score in scores]
    whole = math.fsum(raised)
    return [one / whole for one in raised]


def _check(rewards: Sequence[float]) -> None:
    if not rewards:
        raise InvalidArgument("there is no answer to choose from", field="rewards")
    for number, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise InvalidArgument(
                f"reward {number} is {reward}, must be a finite number", field="rewards"
            )


def _checked_gap(min_gap: float) -> float:
    if not 0 <= min_gap < math.inf:
        raise InvalidArgument(f"min_gap is {min_gap}, must be 0 or more", field="min_gap")
    return min_gap
