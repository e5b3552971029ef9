"""The state machine of a run, without any input or output: who may change into what.

    step:  PENDING → RUNNING → SUCCEEDED | REUSED | FAILED | CANCELLED
           PENDING → CANCELLED
    run:   PENDING → RUNNING ⇄ PAUSED → SUCCEEDED | FAILED | CANCELLED

The run's state follows from its steps and from what its owner wants of it (`settle`). A run ends
only when no step is in flight. Times are Unix milliseconds. The record is the protobuf message
`RunRecord` itself, changed in place by its one writer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from plinth.coordinator.pipeline import Pipeline
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.v1 import runs_pb2 as pb

DONE = frozenset({pb.STEP_STATE_SUCCEEDED, pb.STEP_STATE_REUSED})
ENDED = frozenset({pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED, pb.RUN_STATE_CANCELLED})


class Wanted(StrEnum):
    """What a run's owner asked for last."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


def new_run(run_id: str, pipeline: Pipeline, now: int) -> rec.RunRecord:
    """A run of which nothing has begun."""
    return rec.RunRecord(
        run_id=run_id,
        name=pipeline.name,
        state=pb.RUN_STATE_PENDING,
        steps=[
            rec.StepRecord(name=name, kind=spec.kind, state=pb.STEP_STATE_PENDING)
            for name, spec in pipeline.steps.items()
        ],
        pipeline_yaml=pipeline.text,
        submitted_unix_ms=now,
    )


def take_over(run: rec.RunRecord, done: rec.StepRecord, source: str) -> None:
    """What another run's finished step made stands for the step of that name."""
    assert done.state in DONE, _state(done)
    step = _expect(run, done.name, pb.STEP_STATE_PENDING)
    step.CopyFrom(done)
    step.state = pb.STEP_STATE_REUSED
    step.detail = f"taken over from run {source}"


def step_of(run: rec.RunRecord, name: str) -> rec.StepRecord:
    return next(step for step in run.steps if step.name == name)


def ended(run: rec.RunRecord) -> bool:
    return run.state in ENDED


def in_flight(run: rec.RunRecord) -> list[str]:
    return [step.name for step in run.steps if step.state == pb.STEP_STATE_RUNNING]


def failed(run: rec.RunRecord) -> list[str]:
    return [step.name for step in run.steps if step.state == pb.STEP_STATE_FAILED]


def stopping(run: rec.RunRecord, wanted: Wanted) -> bool:
    """Whether steps in flight are to be abandoned."""
    return wanted is Wanted.CANCEL or bool(failed(run))


def startable(run: rec.RunRecord, pipeline: Pipeline, wanted: Wanted) -> list[str]:
    """Steps that may begin now, in the order of the file."""
    if wanted is not Wanted.RUN or ended(run) or failed(run):
        return []
    done = {step.name for step in run.steps if step.state in DONE}
    return [
        step.name
        for step in run.steps
        if step.state == pb.STEP_STATE_PENDING and pipeline.needs(step.name) <= done
    ]


def begin(run: rec.RunRecord, name: str, *, input_digest: str, job_id: str, now: int) -> None:
    step = _expect(run, name, pb.STEP_STATE_PENDING)
    step.state = pb.STEP_STATE_RUNNING
    step.input_digest = input_digest
    step.job_id = job_id
    step.started_unix_ms = now


def advance(run: rec.RunRecord, name: str, *, fraction: float, detail: str) -> None:
    """Progress never runs backwards for people to see, even where work is taken up again."""
    step = _expect(run, name, pb.STEP_STATE_RUNNING)
    step.progress = min(1.0, max(step.progress, fraction))
    step.detail = detail


def succeed(
    run: rec.RunRecord,
    name: str,
    *,
    output: str,
    metrics: Mapping[str, Any],
    reused: bool,
    now: int,
) -> None:
    step = _expect(run, name, pb.STEP_STATE_RUNNING)
    step.state = pb.STEP_STATE_REUSED if reused else pb.STEP_STATE_SUCCEEDED
    step.progress = 1.0
    step.output = output
    step.metrics_json = json.dumps(dict(metrics), ensure_ascii=False) if metrics else ""
    step.finished_unix_ms = now


def fail(run: rec.RunRecord, name: str, *, error: str, now: int) -> None:
    step = step_of(run, name)
    assert step.state in {pb.STEP_STATE_PENDING, pb.STEP_STATE_RUNNING}, _state(step)
    step.state = pb.STEP_STATE_FAILED
    step.error = error
    step.finished_unix_ms = now


def cancel(run: rec.RunRecord, name: str, *, now: int) -> None:
    step = _expect(run, name, pb.STEP_STATE_RUNNING)
    step.state = pb.STEP_STATE_CANCELLED
    step.finished_unix_ms = now


def refuse(run: rec.RunRecord, *, error: str, now: int) -> None:
    """Ends a run whose pipeline can't be read (any more)."""
    assert not ended(run), pb.RunState.Name(run.state)
    run.state, run.error, run.finished_unix_ms = pb.RUN_STATE_FAILED, error, now


def settle(run: rec.RunRecord, wanted: Wanted, now: int) -> None:
    """Draws the run's state from its steps and from what is wanted."""
    assert not ended(run), pb.RunState.Name(run.state)
    busy = bool(in_flight(run))
    if failures := failed(run):
        run.error = "; ".join(f"{name}: {step_of(run, name).error}" for name in failures)
        run.state = pb.RUN_STATE_RUNNING if busy else pb.RUN_STATE_FAILED
    elif all(step.state in DONE for step in run.steps):
        run.state = pb.RUN_STATE_SUCCEEDED
    elif wanted is Wanted.CANCEL:
        run.state = pb.RUN_STATE_RUNNING if busy else pb.RUN_STATE_CANCELLED
    else:
        run.state = pb.RUN_STATE_PAUSED if wanted is Wanted.PAUSE else pb.RUN_STATE_RUNNING
    if ended(run):
        run.finished_unix_ms = now
        for step in run.steps:
            if step.state == pb.STEP_STATE_PENDING:
                step.state = pb.STEP_STATE_CANCELLED


def _expect(run: rec.RunRecord, name: str, state: pb.StepState.ValueType) -> rec.StepRecord:
    step = step_of(run, name)
    assert step.state == state, _state(step)
    return step


def _state(step: rec.StepRecord) -> str:
    return f"step {step.name} is {pb.StepState.Name(step.state)}"
