"""Alpha, strengths and the report against published values, naive loops, scipy and simulation."""

from __future__ import annotations

import random
from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import minimize

from plinth.coordinator.preferences.agreement import krippendorff_alpha
from plinth.coordinator.preferences.strengths import bradley_terry

# K. Krippendorff (2011), the data of four observers and twelve units with values missing.
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
UNITS = [
    [int(value) for value in unit if value != "."]
    for unit in zip(*(row.split() for row in OBSERVERS), strict=True)
]


def test_alpha_of_the_published_example() -> None:
    """The paper's own results: 0.743 nominal, 0.815 ordinal."""
    assert krippendorff_alpha(UNITS, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(UNITS, "ordinal") == pytest.approx(0.815, abs=5e-4)


def naive_alpha(units: list[list[int]], metric: str) -> float:
    """Pairs of values within a unit against pairs of values anywhere, one by one."""
    units = [unit for unit in units if len(unit) > 1]
    pool = [value for unit in units for value in unit]

    def difference(a: int, b: int) -> float:
        if metric == "nominal":
            return float(a != b)
        low, high = min(a, b), max(a, b)
        between = sum(low <= value <= high for value in pool)
        return (between - (pool.count(low) + pool.count(high)) / 2) ** 2 if a != b else 0.0

    observed = sum(
        difference(a, b) / (len(unit) - 1) for unit in units for a, b in permutations(unit, 2)
    ) / len(pool)
    expected = sum(difference(a, b) for a, b in permutations(pool, 2))
    return 1 - observed / (expected / (len(pool) * (len(pool) - 1)))


@pytest.mark.parametrize("seed", range(10))
def test_alpha_against_a_naive_loop(seed: int) -> None:
    chance = random.Random(seed)
    units = [[chance.choice((-1, 0, 1)) for _ in range(chance.randrange(6))] for _ in range(20)]
    for metric in ("nominal", "ordinal"):
        assert krippendorff_alpha(units, metric) == pytest.approx(naive_alpha(units, metric))  # type: ignore[arg-type]


def test_alpha_where_it_is_known() -> None:
    assert krippendorff_alpha([[1, 1], [-1, -1], [0, 0]], "nominal") == pytest.approx(1)
    assert krippendorff_alpha([[1], [1, 1], []], "nominal") is None
    chance = random.Random(0)
    noise = [[chance.choice((-1, 1)) for _ in range(3)] for _ in range(3000)]
    alpha = krippendorff_alpha(noise, "ordinal")
    assert alpha is not None
    assert abs(alpha) < 0.04
    # Better against worse is further apart than better against a tie: only "ordinal" knows.
    near, far = [[1, 0], [-1, -1], [1, 1], [0, 0]], [[1, -1], [-1, -1], [1, 1], [0, 0]]
    assert krippendorff_alpha(near, "ordinal") > krippendorff_alpha(far, "ordinal")  # type: ignore[operator]


def most_likely(wins: np.ndarray) -> np.ndarray:
    """The maximum of the likelihood by a general optimiser, one parameter fixed at zero."""

    def loss(free: np.ndarray) -> float:
        s = np.concatenate([[0.0], free])
        return float(
            sum(
                wins[i, j] * np.log1p(np.exp(s[j] - s[i]))
                for i in range(len(s))
                for j in range(len(s))
                if i != j
            )
        )

    found = minimize(loss, np.zeros(len(wins) - 1), method="BFGS", options={"gtol": 1e-9})
    s = np.concatenate([[0.0], found.x])
    return s - s.mean()


@pytest.mark.parametrize("seed", range(8))
def test_strengths_are_the_most_likely_ones(seed: int) -> None:
    chance = np.random.default_rng(seed)
    size = int(chance.integers(2, 7))
    wins = chance.integers(1, 30, (size, size)) / 2.0  # halves: ties
    np.fill_diagonal(wins, 0)
    fitted = bradley_terry(wins.tolist())
    assert not fitted.shrunk
    assert fitted.strengths == pytest.approx(most_likely(wins), abs=1e-5)
    assert sum(fitted.strengths) == pytest.approx(0, abs=1e-9)


def test_two_models_by_hand() -> None:
    """p = 30/40, so the lead is log 3, with variance 1 / (n p q); centred, half of each."""
    fitted = bradley_terry([[0, 30], [10, 0]])
    lead = np.log(3)
    assert fitted.strengths == pytest.approx((lead / 2, -lead / 2))
    half = 1.959964 * np.sqrt(1 / (40 * 0.75 * 0.25)) / 2
    assert fitted.highs[0] - fitted.strengths[0] == pytest.approx(half, rel=1e-6)


def test_intervals_hold_what_they_promise() -> None:
    """400 simulated contests of four models: 95 % of the intervals hold the truth."""
    chance = np.random.default_rng(7)
    truth = np.array([0.8, 0.2, -0.3, -0.7])
    held = 0
    for _ in range(400):
        wins = np.zeros((4, 4))
        for i in range(4):
            for j in range(i):
                won = chance.binomial(40, 1 / (1 + np.exp(truth[j] - truth[i])))
                wins[i, j], wins[j, i] = won, 40 - won
        fitted = bradley_terry(wins.tolist())
        held += sum(
            low <= s <= high for low, s, high in zip(fitted.lows, truth, fitted.highs, strict=True)
        )
    assert 0.92 < held / 1600 < 0.98  # 8 standard errors of a share of 1,600 are 0.044


def test_a_model_that_never_loses_gets_a_finite_strength() -> None:
    fitted = bradley_terry([[0, 9, 9], [0, 0, 5], [0, 4, 0]])
    assert fitted.shrunk
    assert np.isfinite(fitted.strengths).all()
    assert fitted.strengths[0] > fitted.strengths[1] > fitted.strengths[2]

    def loss(s: np.ndarray) -> float:
        wins = np.array([[0, 9, 9], [0, 0, 5], [0, 4, 0]])
        lead = s[:, None] - s[None, :]
        prior = 0.5 * (np.log1p(np.exp(-s)) + np.log1p(np.exp(s))).sum()
        return float((wins * np.log1p(np.exp(-lead))).sum() + prior)

    found = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    assert fitted.strengths == pytest.approx(found - found.mean(), abs=1e-5)
    apart = bradley_terry([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    assert apart.shrunk
    assert apart.strengths == pytest.approx((0, 0, 0, 0))
