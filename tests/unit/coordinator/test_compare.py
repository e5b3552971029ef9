"""Which model goes on after a comparison."""

from __future__ import annotations

import pytest

from plinth.coordinator.steps.compare import CompareSpec, Require, choose
from plinth.shared.errors import FailedPrecondition


def model(name: str, rate: float, low: float, high: float) -> dict[str, object]:
    return {"model": name, "win_rate": rate, "win_rate_low": low, "win_rate_high": high}


BASE = model("chat@1", 0.5, 0.4, 0.6)


def test_a_rival_wins_only_beyond_chance() -> None:
    sure, unsure = model("dpo@1", 0.6, 0.52, 0.68), model("ppo@1", 0.55, 0.47, 0.63)
    models = {"baseline": BASE, "candidate": sure, "candidate_2": unsure}
    assert choose(models, Require()) == "candidate"
    assert choose({"baseline": BASE, "candidate": unsure}, Require()) == "baseline"


def test_a_gate_that_is_not_passed_says_by_how_much() -> None:
    models = {"baseline": BASE, "candidate": model("dpo@1", 0.52, 0.44, 0.6)}
    with pytest.raises(FailedPrecondition, match=r"dpo@1 wins 52.0% against chat@1 .* 44.0%"):
        choose(models, Require(win_rate_low_above=0.5))


def test_the_step_gives_a_model_and_takes_models() -> None:
    spec = CompareSpec(
        kind="compare", dataset="$d", reward="$r", baseline="$a", candidate="$b", candidate_3="$c"
    )
    assert spec.produces() == "model"
    assert set(spec.inputs()) == {"dataset", "reward", "baseline", "candidate", "candidate_3"}
