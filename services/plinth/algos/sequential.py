"""Is the share of failures in one stream above that in another by more than a non-inferiority
margin (`delta`, in [0, 1])? Looked at as often as one likes, decided whenever the evidence
suffices; both shares are unknown.

E-variables for two Bernoulli streams: Turner, Ly, Grünwald, "Generic E-variables for exact
sequential k-sample tests that allow for optional stopping" (J. Stat. Plan. Inference 230, 2024);
nulls with a `delta`: Turner, Grünwald, "Exact anytime-valid confidence intervals for contingency
tables and beyond" (Stat. Probab. Lett. 198, 2023). With q the shares of failures:

1. Outcomes come in blocks of any size: n of the control's, m of the treated stream's.
2. Before a block, its alternative (a, b) is chosen by what was seen before it.
3. (a', b') is the pair of the null that is nearest to it, by n·KL(a, a') + m·KL(b, b').
4. The block's e-variable is the likelihood ratio of (a, b) to (a', b'). Its mean is at most 1
   under *every* pair of the null, since the null is convex: log E[e] = n·log g + m·log h
   <= n·(g - 1) + m·(h - 1), which is linear in q, 0 at (a', b'), and falls from there into the null
   because (a', b') is nearest.
5. So the product over blocks is a supermartingale under the null: that it ever reaches 1/level has
   probability at most `level` (Ville 1939), wherever one stops, in whatever order the two streams'
   outcomes are interleaved. The mean over several alternatives' products keeps that.

What it takes for granted: outcomes of a stream are independent with a share that stays, and how
many come in a block says nothing of what they are. Knows no canary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

# What the control's share is taken for before anything is seen, in (failures, outcomes). It costs
# evidence where it is far off, and never validity.
_PRIOR = (0.5, 5.0)
# (weight, odds of the treated stream's failures as a multiple of the control's, share of `delta`
# that is used up). The first is the case that most candidates are: no difference at all.
_NOT_WORSE = ((0.7, 1.0, 0.0), (0.1, 1.0, 0.5), (0.1, 0.5, 0.0), (0.1, 0.25, 0.0))
# Odds of the treated stream's failures as a multiple of those at `delta`, each of equal weight.
_WORSE = (2.0, 5.0, 20.0, 100.0)


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of two streams, and how many of them were failures."""

    control: int = 0
    control_failed: int = 0
    treated: int = 0
    treated_failed: int = 0

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            self.control + other.control,
            self.control_failed + other.control_failed,
            self.treated + other.treated,
            self.treated_failed + other.treated_failed,
        )


@dataclass(frozen=True)
class Evidence:
    """What was seen, and the logarithms of the products of e-values, one for each alternative:
    against "worse by delta or more", and against "worse by delta at most"."""

    seen: Outcomes = Outcomes()
    not_worse: tuple[float, ...] = (0.0,) * len(_NOT_WORSE)
    worse: tuple[float, ...] = (0.0,) * len(_WORSE)

    def after(self, block: Outcomes, delta: float) -> Evidence:
        """With one more block. delta: the same at each call."""
        control = (self.seen.control_failed + _PRIOR[0]) / (self.seen.control + _PRIOR[1])
        better = [at for _, at in not_worse_alternatives(control, delta)]
        return Evidence(
            self.seen + block,
            tuple(
                log + log_e_value(block, (control, treated), delta)
                for log, treated in zip(self.not_worse, better, strict=True)
            ),
            tuple(
                log + log_e_value(block, (control, treated), delta)
                for log, treated in zip(self.worse, worse_alternatives(control, delta), strict=True)
            ),
        )

    def log_not_worse(self, delta: float) -> float:
        """Logarithm of the evidence that the treated stream is worse by less than delta."""
        weights = [weight for weight, _ in not_worse_alternatives(0.5, delta)]
        return _log_mean(self.not_worse, weights)

    def log_worse(self) -> float:
        """Logarithm of the evidence that it is worse by more than delta."""
        return _log_mean(self.worse, [1 / len(_WORSE)] * len(_WORSE))


def not_worse_alternatives(control: float, delta: float) -> list[tuple[float, float]]:
    """(weight, the treated stream's share). Without a delta the first two lie in the null, where
    there is nothing to win: the others have their weight."""
    useful = [one for one in _NOT_WORSE if delta > 0 or one[1] < 1]
    whole = sum(weight for weight, _, _ in useful)
    return [
        (
            weight / whole if delta > 0 or odds < 1 else 0.0,
            _by_odds(control, odds) + used * delta,
        )
        for weight, odds, used in _NOT_WORSE
    ]


def worse_alternatives(control: float, delta: float) -> list[float]:
    """The treated stream's shares; none above what delta allows where that is everything."""
    allowed = min(control + delta, 1.0)
    return [_by_odds(allowed, odds) for odds in _WORSE]


def log_e_value(block: Outcomes, alternative: tuple[float, float], delta: float) -> float:
    """Of one block, against the null on the other side of delta than the alternative; 0 where
    the alternative lies on it or the block says nothing of a difference."""
    n, m = block.control, block.treated
    a, b = alternative
    if not n or not m or abs(b - a - delta) < 1e-12 or a + delta >= 1:
        return 0.0
    at = _nearest(n, m, a, b, delta)
    return (
        block.control_failed * math.log(a / at)
        + (n - block.control_failed) * math.log((1 - a) / (1 - at))
        + block.treated_failed * math.log(b / (at + delta))
        + (m - block.treated_failed) * math.log((1 - b) / (1 - at - delta))
    )


def _nearest(n: float, m: float, a: float, b: float, delta: float) -> float:
    """The x for which (x, x + delta) is nearest to (a, b): where the derivative of
    n·KL(a, x) + m·KL(b, x + delta), which is convex, changes its sign. By bisection."""
    low, high = sorted((a, min(max(b - delta, 0.0), 1 - delta)))
    for _ in range(60):
        x = (low + high) / 2
        y = x + delta
        if n * (x - a) * y * (1 - y) + m * (y - b) * x * (1 - x) < 0:
            low = x
        else:
            high = x
        if high - low < 1e-15 + 1e-13 * x:
            break
    return (low + high) / 2


def _by_odds(share: float, times: float) -> float:
    """The share whose odds are so many times those of this one."""
    return times * share / (1 - share + times * share)


def _log_mean(logs: Sequence[float], weights: Sequence[float]) -> float:
    top = max(log for log, weight in zip(logs, weights, strict=True) if weight)
    return top + math.log(
        math.fsum(w * math.exp(log - top) for log, w in zip(logs, weights, strict=True) if w)
    )


def treated_needed(
    control: float,
    treated: float,
    delta: float,
    *,
    treated_share: float,
    level: float,
    power: float = 0.8,
    worse: bool = False,
) -> int | None:
    """Outcomes of the treated stream by which the evidence has reached 1/level with probability
    `power`, where the true shares of failures are `control` and `treated` and `treated_share` of
    all outcomes are the treated stream's; for `worse`, that it is worse by more than delta.
    None where no number is enough.

    By the first passage of a Brownian motion with the drift and variance of the alternative's
    log e-values (inverse Gaussian), with the control's share known: the tests hold it against
    simulations.
    """
    ratio = (1 - treated_share) / treated_share
    known = min(max(control, 1e-6), 1 - 1e-6)
    if worse:
        alternatives = [(1 / len(_WORSE), b) for b in worse_alternatives(known, delta)]
    else:
        alternatives = [one for one in not_worse_alternatives(known, delta) if one[0]]
    found = []
    for weight, b in alternatives:
        if known + delta >= 1 or abs(b - known - delta) < 1e-12:
            continue
        at = _nearest(ratio, 1.0, known, b, delta)
        ours = _gain(treated, b, at + delta)
        theirs = _gain(control, known, at)
        drift = ours[0] + ratio * theirs[0]
        variance = ours[1] + ratio * theirs[1]
        if drift > 0:
            found.append(_first_passage(-math.log(level * weight), drift, variance, power))
    return math.ceil(min(found)) if found else None


def _gain(share: float, alternative: float, null: float) -> tuple[float, float]:
    """Mean and variance of the log likelihood ratio of one outcome."""
    failed, good = math.log(alternative / null), math.log((1 - alternative) / (1 - null))
    return share * failed + (1 - share) * good, share * (1 - share) * (failed - good) ** 2


def _first_passage(height: float, drift: float, variance: float, power: float) -> float:
    """Steps by which a Brownian motion has reached `height` with probability `power`."""
    if variance == 0:
        return height / drift
    cdf = NormalDist().cdf

    def reached(steps: float) -> float:
        width = math.sqrt(variance * steps)
        back = 2 * drift * height / variance
        # Far up the second term is 0 times infinity.
        late = math.exp(back) * cdf(-(drift * steps + height) / width) if back < 500 else 0.0
        return cdf((drift * steps - height) / width) + late

    low, high = 0.0, height / drift
    while reached(high) < power:
        low, high = high, 2 * high
    for _ in range(60):
        steps = (low + high) / 2
        low, high = (steps, high) if reached(steps) < power else (low, steps)
    return high
