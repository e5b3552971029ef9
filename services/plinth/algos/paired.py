"""Is one of two better, where both answered the same prompts? Exact tests of pairs, one-sided.

A pair says something only where its two sides differ: prompts on which both pass or both fail, or
whose answers are worth the same, are ties, and say nothing of which is better. Of the pairs that
differ, a side that is no better wins each with probability one half at most. That is the sign test
(Dixon, Mood 1946), which McNemar's (1947) is for pairs of yes and no; by the binomial
distribution itself, so that few pairs are no problem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

_MANY = 2000  # pairs, from which on a normal distribution tells their number as well
LEVEL = 0.025  # one-sided: that "better beyond chance" is said of what is no better


@dataclass(frozen=True)
class PairedCounts:
    """How one side did against the other, prompt by prompt."""

    wins: int
    losses: int
    ties: int

    @property
    def of(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def rate(self) -> float:
        """Share of the prompts won, ties as half; one half of none."""
        return (self.wins + self.ties / 2) / self.of if self.of else 0.5

    def p_value(self, above: float = 0.5) -> float:
        """Chance of so many wins or more, where the rate is `above` at most. With other bars than
        one half the number of ties is taken as given; where it alone makes a rate that is above
        the bar, 0."""
        differ = self.wins + self.losses
        if not differ:
            return 1.0
        share = _of_differing(above, self.ties / self.of)
        return binomial_tail(self.wins, differ, min(share, 1.0)) if share >= 0 else 0.0

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Of the rate, with `level` on either side: Clopper and Pearson's (1934) for the pairs that
        differ, ties as given. Its lower end is above one half just where the p-value is below
        `level`."""
        differ = self.wins + self.losses
        if not differ:
            return 0.5, 0.5
        scale = differ / self.of
        low = 0.5 + (_share_of(self.wins, differ, level) - 0.5) * scale
        high = 0.5 - (_share_of(self.losses, differ, level) - 0.5) * scale
        return min(low, self.rate), max(high, self.rate)  # where all won, or lost, they round apart


def holm(p_values: Mapping[str, float], level: float = LEVEL) -> set[str]:
    """Those that are beyond chance where all are tried (Holm 1979): the chance that any of those
    that are none is among them is `level` at most, whatever they have to do with one another."""
    found: set[str] = set()
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for number, name in enumerate(ordered):
        if p_values[name] > level / (len(ordered) - number):
            break
        found.add(name)
    return found


def pairs_needed(
    rate: float, *, rivals: int = 1, ties: float = 0.0, power: float = 0.8, above: float = 0.5
) -> int:
    """Prompts from which on a side that truly wins `rate` of those that differ is found to be
    better with probability `power`, beside `rivals` - 1 others that need not be (Holm's first
    step). ties: share of the prompts that don't differ. above: the bar that its rate (of all
    prompts, ties as half) is tried against. ValueError unless that lies below the rate, and `rate`
    below 1."""
    bar = min(max(_of_differing(above, ties), 0.0), 1.0)
    if not bar < rate < 1:
        raise ValueError(f"a rate between {bar:g} and 1 can be shown, not {rate:g}")
    level = LEVEL / rivals
    ppf = NormalDist().inv_cdf
    height = ppf(1 - level) * math.sqrt(bar * (1 - bar))
    height += ppf(power) * math.sqrt(rate * (1 - rate))
    about = math.ceil((height / (rate - bar)) ** 2)
    if about > _MANY:
        return math.ceil(about / (1 - ties))
    enough = math.ceil(1.05 * about) + 20
    while enough and power_of(enough - 1, rate, level, bar) >= power:
        enough -= 1
    return math.ceil(enough / (1 - ties))


def rate_shown(prompts: int, *, rivals: int = 1, power: float = 0.8) -> float:
    """The true rate, to a tenth of a point, that so many prompts without ties show with probability
    `power`; 1 if none."""
    low, high = 500, 1000
    while high - low > 1:
        middle = (low + high) // 2
        enough = power_of(prompts, middle / 1000, LEVEL / rivals) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high / 1000


def power_of(differ: int, rate: float, level: float, above: float = 0.5) -> float:
    """Chance that so many pairs that differ, won at this rate, are beyond chance at this level;
    all of them those that differ, `above` too."""
    return binomial_tail(_critical(differ, level, above), differ, rate)


def binomial_tail(wins: int, of: int, share: float) -> float:
    """Chance of at least so many wins of so many, each with probability `share`."""
    if wins <= 0 or share >= 1:
        return 1.0
    if wins > of or share <= 0:
        return 0.0
    if wins <= of * share:  # from the shorter side: terms fall away from the mean
        return 1 - _falling(of - wins + 1, of, 1 - share)
    return _falling(wins, of, share)


def _falling(wins: int, of: int, share: float) -> float:
    """The tail above the mean, summed until nothing is added."""
    if wins > of:
        return 0.0
    term = math.exp(
        math.lgamma(of + 1) - math.lgamma(wins + 1) - math.lgamma(of - wins + 1)
        + wins * math.log(share) + (of - wins) * math.log1p(-share)
    )  # fmt: skip
    total, odds = 0.0, share / (1 - share)
    while term > total * 1e-17:
        total += term
        term *= (of - wins) / (wins + 1) * odds
        wins += 1
    return min(1.0, total)


def _of_differing(rate: float, ties: float) -> float:
    """Share of the pairs that differ that must be won for a rate of all, `ties` of which differ
    not: below 0 where the ties alone exceed it, above 1 where no wins reach it."""
    return 0.5 + (rate - 0.5) / (1 - ties)


def _critical(of: int, level: float, above: float) -> int:
    """The fewest wins that are beyond chance; of + 1 if none are."""
    low, high = 0, of + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_tail(middle, of, above) <= level else (middle, high)
    return high


def _share_of(wins: int, of: int, level: float) -> float:
    """The least share of wins under which so many or more have a chance of `level`."""
    if not wins:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(wins, of, middle) < level else (low, middle)
    return low
