"""The last line of a step says what came of it, and no figure that nobody measured."""

from __future__ import annotations

import pytest

import shown_runs
from plinth.cli.run_view import PlainLines, about
from plinth.v1 import runs_pb2 as pb


def step(state: pb.StepState.ValueType, detail: str = "", **metrics: float) -> pb.Step:
    return shown_runs.step("train", metrics, "m@1", state=state, detail=detail)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"loss": 3.079, "tokens_per_second": 14_200.4}, "loss 3.079, 14,200 tokens/s"),
        ({"loss": 3.079, "tokens_per_second": 0.0}, "loss 3.079"),
        ({"loss": 3.079}, "loss 3.079"),
        ({}, ""),
    ],
)
def test_a_trained_step_says_its_loss_and_its_rate_if_there_is_one(
    metrics: dict[str, float], says: str
) -> None:
    assert about(step(pb.STEP_STATE_SUCCEEDED, **metrics)) == f"m@1  {says}".rstrip()


def test_what_a_step_waits_for_is_said_at_once_and_once() -> None:
    """A step begins without a word; what it says next may be all that it says for hours."""
    lines = PlainLines()
    waits = "waits for a trainer that is free"
    said = [
        line
        for detail in ("", waits, waits, "step 1/900 · loss 20.581")
        for line in lines.update(shown_runs.run(step(pb.STEP_STATE_RUNNING, detail=detail)))
        if line.startswith("train")
    ]
    assert [waits in line for line in said] == [False, True]


def test_the_last_line_is_of_the_end_and_not_of_what_was_told_before() -> None:
    lines = PlainLines()
    running = step(pb.STEP_STATE_RUNNING, detail="step 1/900 · loss 20.581")
    ended = step(pb.STEP_STATE_SUCCEEDED, loss=3.079, tokens_per_second=14_200.0)
    said = [
        line
        for update in (running, ended)
        for line in lines.update(shown_runs.run(update))
        if line.startswith("train")
    ]
    assert len(said) == 2
    assert "20.581" in said[0]
    assert "20.581" not in said[1]
    assert "loss 3.079" in said[1]
