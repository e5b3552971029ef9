"""The gate on instructions and language: its figures by hand and by numpy, and each refusal."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from plinth.coordinator.respondent import Sampled
from plinth.coordinator.steps.verify import (
    VerifyRequire,
    check,
    distinct_trigrams,
    figures,
    percentile,
)
from plinth.shared.errors import FailedPrecondition
from plinth.shared.prompt_set import Prompt

FLOATS = st.floats(-50, 0)


def answers(passed: int, of: int, text: str = "a b c d") -> list[Sampled]:
    return [
        Sampled(
            Prompt(f"q{n}", "even" if n % 2 == 0 else "odd"),
            (1,),
            (2, 3),
            text,
            (-1.0, -2.0),
            True,
            float(n < passed),
        )
        for n in range(of)
    ]


@given(st.lists(FLOATS, min_size=1, max_size=30), st.floats(0, 1))
def test_the_percentile_is_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-9)


def test_distinct_trigrams_are_counted_within_answers() -> None:
    assert distinct_trigrams(["a b c d", "A b c"]) == pytest.approx(2 / 3)
    assert distinct_trigrams(["a b", ""]) == 1.0
    assert distinct_trigrams(["x x x x x"]) == pytest.approx(1 / 3)


def test_figures_by_hand() -> None:
    likely = {"baseline": [-1.0 - n / 100 for n in range(100)], "model": [-1.5, -3.0, -3.0, -1.0]}
    found = figures({"baseline": answers(1, 4), "model": answers(3, 4)}, likely)
    model = found["sides"]["model"]
    assert model["pass_rate"] == 0.75
    assert model["groups"] == {"even": 1.0, "odd": 0.5}
    assert model["unlikely"] == 0.5  # two of four lie below -1.94
    assert found["sides"]["baseline"]["unlikely"] == 0.05
    assert model["logprob"] == pytest.approx(-2.125)
    assert len(found["shown"]) == 4


def test_what_both_or_neither_pass_says_nothing() -> None:
    """Of six prompts the model alone passes three and the baseline alone none: one of eight."""
    model = answers(5, 6)
    baseline = [replace(one, reward=float(n in (0, 1))) for n, one in enumerate(answers(0, 6))]
    likely = {side: [-1.0] * 6 for side in ("baseline", "model")}
    found = figures({"baseline": baseline, "model": model}, likely)
    assert (found["model_alone_passes"], found["baseline_alone_passes"]) == (3, 0)
    assert found["p_value"] == pytest.approx(1 / 8)
    assert found["p_value"] == pytest.approx(binomtest(3, 3, alternative="greater").pvalue)


def report(**changes: float) -> dict[str, object]:
    model = {
        "pass_rate": 0.7,
        "pass_rate_low": 0.6,
        "pass_rate_high": 0.8,
        "unlikely": 0.1,
        **{k: v for k, v in changes.items() if k not in {"trigrams_ratio", "p_value"}},
    }
    return {
        "model_alone_passes": 60,
        "baseline_alone_passes": 10,
        "p_value": changes.get("p_value", 0.0),
        "sides": {"model": model, "baseline": {"pass_rate": 0.2}},
        "trigrams_ratio": changes.get("trigrams_ratio", 1.0),
    }


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pass_rate": 0.5}, "pass_rate_at_least"),
        ({"p_value": 0.026}, "above_baseline"),
        ({"unlikely": 0.16}, "unlikely_at_most"),
        ({"trigrams_ratio": 0.89}, "trigrams_at_least"),
        ({"trigrams_ratio": -math.inf}, "trigrams_at_least"),
    ],
)
def test_each_condition_refuses_by_itself(change: dict[str, float], field: str) -> None:
    require = VerifyRequire(
        pass_rate_at_least=0.55, above_baseline=True, unlikely_at_most=0.15, trigrams_at_least=0.9
    )
    check(require, report())
    check(VerifyRequire(), report(**change))
    with pytest.raises(FailedPrecondition, match="nothing is promoted") as caught:
        check(require, report(**change))
    assert caught.value.field == f"require.{field}"
