"""How often `verify` and `compare` call something better beyond chance, by the code that decides
it: what is no better at most 2.5 % of the time, over all rivals; what is better as often as
docs/promotion.md says of the number of prompts.

2,000 runs each are slow; 200 of the same, by the same seeds, are not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from plinth.algos.paired import pairs_needed
from plinth.coordinator.respondent import Sampled
from plinth.coordinator.steps import compare, verify
from plinth.shared.errors import FailedPrecondition
from plinth.shared.prompt_set import Prompt
from plinth.trainer.policy.compare import against

RUNS = [200, pytest.param(2000, marks=pytest.mark.slow)]
DOCS = Path(__file__).parents[3] / "docs" / "promotion.md"
PROMPTS = 125


def most(runs: int) -> float:
    """Where exactly 2.5 % may be wrong, so many of the runs are one time in a thousand."""
    return float(binom.ppf(0.999, runs, 0.025))


def verified(rng: np.random.Generator, before: float, after: float, alike: float) -> bool:
    """Whether the gate says so of models that pass such shares; `alike`: share of the prompts on
    which both do as the one draw says, so that their answers go together."""
    draws = rng.random((2, PROMPTS))
    draws[1] = np.where(rng.random(PROMPTS) < alike, draws[0], draws[1])
    sides = {
        side: [
            Sampled(Prompt(f"q{n}", "all"), (1,), (2,), "a b c", (-1.0,), True, float(draw < rate))
            for n, draw in enumerate(row)
        ]
        for side, row, rate in zip(verify.SIDES, draws, (before, after), strict=True)
    }
    likely = {side: [-1.0] * PROMPTS for side in verify.SIDES}
    try:
        verify.check(verify.VerifyRequire(above_baseline=True), verify.figures(sides, likely))
    except FailedPrecondition:
        return False
    return True


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("alike", [0.0, 0.6])
def test_an_identical_model_is_not_better_than_its_baseline(runs: int, alike: float) -> None:
    rng = np.random.default_rng(5)
    found = sum(verified(rng, 0.4, 0.4, alike) for _ in range(runs))
    print(found, runs)
    assert found <= most(runs)


@pytest.mark.parametrize("runs", RUNS)
def test_a_better_model_is(runs: int) -> None:
    rng = np.random.default_rng(5)
    found = sum(verified(rng, 0.4, 0.7, 0.3) for _ in range(runs))
    assert found >= 0.95 * runs


def contest(rng: np.random.Generator, prompts: int, lead: list[float], ties: float = 0.1) -> str:
    """Who goes on. lead: of each rival's scores over the baseline's, in their standard deviations;
    answers of a share of the prompts are the same for all."""
    same = rng.random(prompts) < ties
    scores = rng.normal(size=(len(lead) + 1, prompts))
    scores[1:] += np.array(lead)[:, None]
    sides = [
        [
            (((0,), 0.0) if tie else ((number + 1, n), float(score)))
            for n, (tie, score) in enumerate(zip(same, row, strict=True))
        ]
        for number, row in enumerate(scores)
    ]
    names = ["baseline", *compare.RIVALS[: len(lead)]]
    models: dict[str, dict[str, Any]] = {
        name: {"model": name, **against(sides[0], side)}
        for name, side in zip(names, sides, strict=True)
    }
    return compare.choose(models, compare.CompareRequire())[0]


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("rivals", [1, 3])
def test_no_rival_of_identical_ones_goes_on(runs: int, rivals: int) -> None:
    """Against the same baseline, so that what the rivals show goes together."""
    rng = np.random.default_rng(6)
    found = sum(contest(rng, 128, [0.0] * rivals) != "baseline" for _ in range(runs))
    print(found, runs)
    assert found <= most(runs)


@pytest.mark.slow
@pytest.mark.parametrize("rivals", [1, 3])
@pytest.mark.parametrize("rate", [0.6, 0.7])
def test_the_power_at_the_documented_sizes(rate: float, rivals: int) -> None:
    """One rival wins `rate` of the prompts that differ, the others none more than half."""
    from scipy.stats import norm

    lead = float(norm.ppf(rate)) * 2**0.5
    prompts = pairs_needed(rate, rivals=rivals, ties=0.1)
    rng = np.random.default_rng(7)
    others = [0.0] * (rivals - 1)
    found = sum(contest(rng, prompts, [lead, *others]) == "candidate" for _ in range(2000))
    print(rate, rivals, prompts, found)
    assert found >= 0.76 * 2000


def test_the_documentation_tells_the_sizes_that_the_report_does() -> None:
    table = re.findall(
        r"^\| (\d+) % \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", DOCS.read_text(), re.M
    )
    assert len(table) >= 6
    for rate, *sizes in table:
        told = [int(size.replace(",", "")) for size in sizes]
        assert told == [pairs_needed(int(rate) / 100, rivals=rivals) for rivals in (1, 2, 3)]
