"""Paired tests against scipy, and by enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, false_discovery_control

from plinth.algos.paired import (
    LEVEL,
    PairedCounts,
    binomial_tail,
    holm,
    pairs_needed,
    power_of,
    rate_shown,
)

COUNTS = st.integers(0, 400)


@given(COUNTS, COUNTS, st.floats(0, 1))
def test_the_tail_is_scipys(wins: int, losses: int, share: float) -> None:
    truth = binom.sf(wins - 1, wins + losses, share)
    assert binomial_tail(wins, wins + losses, share) == pytest.approx(truth, rel=1e-8, abs=1e-12)


@given(COUNTS, COUNTS, COUNTS)
@example(0, 1, 50)  # with so many ties the rate is above 0.4, whoever wins the one
@example(1, 0, 50)
@example(0, 1, 2)  # its lower end was above its rate, by rounding
def test_the_interval_is_clopper_and_pearsons_and_agrees_with_the_test(
    wins: int, losses: int, ties: int
) -> None:
    pairs = PairedCounts(wins, losses, ties)
    low, high = pairs.interval()
    assert low <= pairs.rate <= high
    if wins + losses:
        test = binomtest(wins, wins + losses, alternative="greater")
        assert pairs.p_value() == pytest.approx(test.pvalue, rel=1e-8, abs=1e-12)
        truth = binomtest(wins, wins + losses).proportion_ci(0.95, method="exact")
        scale = (wins + losses) / pairs.of
        assert low == pytest.approx(0.5 + (truth.low - 0.5) * scale, abs=1e-9)
        assert high == pytest.approx(0.5 + (truth.high - 0.5) * scale, abs=1e-9)
        if abs(pairs.p_value() - LEVEL) > 1e-9:
            assert (low > 0.5) == (pairs.p_value() <= LEVEL)
            # And at any other bar, the number of ties given.
            for bar in (0.4, 0.55):
                if abs(low - bar) > 1e-9:
                    assert (low > bar) == (pairs.p_value(bar) <= LEVEL)


def test_ties_alone_show_nothing() -> None:
    assert PairedCounts(0, 0, 100).p_value() == 1.0
    assert PairedCounts(0, 0, 100).interval() == (0.5, 0.5)
    assert PairedCounts(0, 0, 0).rate == 0.5
    # And they take nothing from what the others show.
    assert PairedCounts(30, 10, 0).p_value() == PairedCounts(30, 10, 500).p_value()


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=4))
def test_holm_is_the_closed_test_of_bonferronis(p_values: list[float]) -> None:
    """Marcus, Peritz, Gabriel 1976: a hypothesis falls just where every intersection that it is
    part of is rejected, each by its smallest p-value times its number."""
    names = [str(number) for number in range(len(p_values))]
    p = dict(zip(names, p_values, strict=True))
    sets = [
        chosen for size in range(1, len(p) + 1) for chosen in itertools.combinations(names, size)
    ]
    closed = {
        name
        for name in names
        if all(min(p[n] for n in s) <= LEVEL / len(s) for s in sets if name in s)
    }
    assert holm(p) == closed


def test_holm_finds_no_fewer_than_bonferroni_and_no_more_than_a_false_discovery_rate() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        values = rng.uniform(0, 0.06, 3)
        p = {str(number): value for number, value in enumerate(values)}
        loose = false_discovery_control(values)
        found = holm(p)
        assert {name for name in p if p[name] <= LEVEL / 3} <= found
        assert found <= {name for name in p if loose[int(name)] <= LEVEL}


@pytest.mark.parametrize("rivals", [1, 3])
@pytest.mark.parametrize("rate", [0.55, 0.6, 0.7, 0.9])
def test_the_size_that_is_told_has_its_power_and_no_smaller_one_by_far(
    rate: float, rivals: int
) -> None:
    told = pairs_needed(rate, rivals=rivals)

    def power(n: int) -> float:
        critical = next(k for k in range(n + 2) if binom.sf(k - 1, n, 0.5) <= LEVEL / rivals)
        return float(binom.sf(critical - 1, n, rate))

    assert power(told) >= 0.8 > power(math.floor(0.9 * told) - 2)
    assert power_of(told, rate, LEVEL / rivals) == pytest.approx(power(told))
    assert pairs_needed(rate, rivals=rivals, ties=0.5) in (2 * told, 2 * told - 1)
    shown = rate_shown(told, rivals=rivals)
    assert shown <= rate
    assert power_of(told, shown, LEVEL / rivals) >= 0.8
    assert power_of(told, shown - 0.002, LEVEL / rivals) < 0.8


def test_what_is_no_better_can_not_be_shown() -> None:
    with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
        pairs_needed(0.5)
    assert rate_shown(3) == 1.0
