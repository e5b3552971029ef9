"""E-values of two streams: their mean under every pair of the null by enumeration, the nearest pair
by scipy, and the sizes that are told by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from plinth.algos.sequential import (
    Evidence,
    Outcomes,
    _nearest,
    log_e_value,
    treated_needed,
)

SHARES = st.floats(1e-4, 1 - 1e-4)
MARGINS = st.sampled_from([0.0, 0.01, 0.1, 0.5])


def outcomes(n: int, m: int) -> list[Outcomes]:
    return [Outcomes(n, a, m, b) for a in range(n + 1) for b in range(m + 1)]


def chance(block: Outcomes, control: float, treated: float) -> float:
    return float(
        binom.pmf(block.control_failed, block.control, control)
        * binom.pmf(block.treated_failed, block.treated, treated)
    )


@given(st.integers(1, 9), st.integers(1, 5), SHARES, SHARES, SHARES, MARGINS)
def test_the_mean_is_at_most_one_under_every_pair_of_the_null(
    n: int, m: int, a: float, b: float, q: float, delta: float
) -> None:
    """At the delta, where it is largest, and inside; whatever the alternative."""
    not_worse = b - a < delta
    edge = min(q + delta, 1.0)
    far = (1 + edge) / 2 if not_worse else edge / 2
    for treated in (edge, far):
        null = (max(edge - delta, 0.0), treated)
        mean = math.fsum(
            chance(block, *null) * math.exp(log_e_value(block, (a, b), delta))
            for block in outcomes(n, m)
        )
        assert mean <= 1 + 1e-9


@given(st.integers(1, 20), st.integers(1, 20), SHARES, SHARES, MARGINS)
def test_the_nearest_pair_is_scipys(n: int, m: int, a: float, b: float, delta: float) -> None:
    def divergence(x: float) -> float:
        y = x + delta
        ours = a * math.log(a / x) + (1 - a) * math.log((1 - a) / (1 - x))
        return n * ours + m * (b * math.log(b / y) + (1 - b) * math.log((1 - b) / (1 - y)))

    if not a + delta < 1:
        return
    found = _nearest(n, m, a, b, delta)
    truth = minimize_scalar(
        divergence, bounds=(1e-9, 1 - delta - 1e-9), method="bounded", options={"xatol": 1e-12}
    )
    assert divergence(found) <= truth.fun + 1e-7 * (1 + abs(truth.fun))


@pytest.mark.parametrize("delta", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("control", [0.02, 0.3])
def test_what_is_chosen_block_by_block_stays_a_supermartingale(
    delta: float, control: float
) -> None:
    """Each block's alternative depends on what came before it: all paths of three blocks."""
    treated = control + delta
    blocks = outcomes(2, 1)
    mean_not_worse = mean_worse = 0.0
    paths: list[tuple[float, Evidence]] = [(1.0, Evidence())]
    for _ in range(3):
        paths = [
            (p * chance(block, control, treated), evidence.after(block, delta))
            for p, evidence in paths
            for block in blocks
        ]
    mean_not_worse = math.fsum(p * math.exp(e.log_not_worse(delta)) for p, e in paths)
    mean_worse = math.fsum(p * math.exp(e.log_worse()) for p, e in paths)
    assert 0 < mean_not_worse <= 1 + 1e-9
    assert 0 < mean_worse <= 1 + 1e-9


def test_a_block_of_one_stream_or_without_a_difference_says_nothing() -> None:
    for block in (Outcomes(5, 2, 0, 0), Outcomes(0, 0, 5, 5)):
        assert Evidence().after(block, 0.1).log_worse() == 0
    assert log_e_value(Outcomes(5, 1, 5, 5), (0.2, 0.3), 0.1) == pytest.approx(0)
    assert Evidence().after(Outcomes(5, 1, 5, 5), 1.0).log_worse() == 0  # all of it is allowed


def test_evidence_points_where_the_outcomes_do() -> None:
    bad = Evidence().after(Outcomes(90, 1, 10, 5), 0.01)
    assert bad.log_worse() > math.log(20) > 0 > bad.log_not_worse(0.01)
    good = Evidence()
    for _ in range(40):
        good = good.after(Outcomes(90, 1, 10, 0), 0.01)
    assert good.log_not_worse(0.01) > math.log(20) > 0 > good.log_worse()


# (control's failures, treated's, delta, treated's share of all, whether it is worse)
SIZES = [
    (0.01, 0.01, 0.05, 0.1, False),
    (0.05, 0.05, 0.1, 0.5, False),
    (0.05, 0.01, 0.0, 0.1, False),
    (0.01, 0.1, 0.01, 0.1, True),
    (0.2, 0.4, 0.05, 0.3, True),
]


@pytest.mark.parametrize("case", SIZES)
def test_the_size_that_is_told_has_the_power_that_is_told(
    case: tuple[float, float, float, float, bool],
) -> None:
    """80 % by a diffusion's first passage; simulated, with blocks of one, it is 65 to 95 %: 200
    runs have a standard error of 3 points, the rest is that small counts are no diffusion."""
    control, treated, delta, share, worse = case
    told = treated_needed(control, treated, delta, treated_share=share, level=0.05, worse=worse)
    assert told is not None
    rng = np.random.default_rng(7)
    per_block = round((1 - share) / share)
    reached = 0
    for _ in range(200):
        evidence = Evidence()
        for _ in range(told):
            block = Outcomes(
                per_block, rng.binomial(per_block, control), 1, rng.binomial(1, treated)
            )
            evidence = evidence.after(block, delta)
            log = evidence.log_worse() if worse else evidence.log_not_worse(delta)
            if log >= math.log(20):
                reached += 1
                break
    assert 130 <= reached <= 200
    assert reached < 200


def test_what_can_not_be_shown_has_no_size() -> None:
    assert treated_needed(0.01, 0.01, 0.0, treated_share=0.1, level=0.05) is None
    assert treated_needed(0.01, 0.03, 0.01, treated_share=0.1, level=0.05) is None
    assert treated_needed(0.1, 0.05, 0.0, treated_share=0.1, level=0.05, worse=True) is None
