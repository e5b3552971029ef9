"""Runs as RunService tells of them, made of the records that Redis keeps; and what a filter of them
may ask. A run is made by one request, so nothing goes the other way but its id and its pipeline."""

from __future__ import annotations

import json
from datetime import datetime

from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.api.enums import number, word, words
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.resource_names import Pattern
from plinth.shared.api.structs import struct
from plinth.shared.api.times import instant, timestamp
from plinth.v1 import runs_pb2 as pb

RUNS = Pattern("runs/{run}", r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
# Kinds of steps whose work is one job of the trainer.
_JOBS = frozenset({"data", "train", "compare"})


def run_message(record: rec.RunRecord, *, pipeline: bool = True) -> pb.Run:
    """The public message. pipeline: with its text."""
    forked = bool(record.forked_from)
    return pb.Run(
        name=RUNS.name(record.run_id),
        spec=pb.RunSpec(pipeline_yaml=record.pipeline_yaml if pipeline else ""),
        status=pb.RunStatus(
            state=record.state,
            display_name=record.name,
            steps=[step_message(step) for step in record.steps],
            error=record.error,
            end_time=timestamp(record.finished_unix_ms),
            revision=record.revision,
            forked_from=RUNS.name(record.forked_from) if forked else "",
            forked_from_step=record.forked_at,
        ),
        owner=record.owner if record.HasField("owner") else None,
        create_time=timestamp(record.submitted_unix_ms),
        update_time=timestamp(record.changed_unix_ms or record.submitted_unix_ms),
    )


def step_message(record: rec.StepRecord) -> pb.Step:
    """The public message of a step. A kind that the API has no word for yet is unspecified."""
    known = record.kind in words(pb.StepKind)
    has_job = record.kind in _JOBS and record.state != pb.STEP_STATE_REUSED and record.job_id
    return pb.Step(
        step_id=record.name,
        kind=number(pb.StepKind, record.kind) if known else 0,  # type: ignore[arg-type]
        state=record.state,
        progress=record.progress,
        detail=record.detail,
        error=record.error,
        artifact=f"artifacts/{record.output}" if record.output else "",
        metrics=struct(json.loads(record.metrics_json)) if record.metrics_json else None,
        job=f"jobs/{record.job_id}" if has_job else "",
        input_digest=record.input_digest,
        start_time=timestamp(record.started_unix_ms),
        end_time=timestamp(record.finished_unix_ms),
    )


_STATES = tuple(state.upper() for state in words(pb.RunState))

RUN_FILTERS = Filters(
    {
        "name": Field(lambda run: run.name, str),
        "state": Field(lambda run: word(pb.RunState, run.status.state).upper(), str, _STATES),
        "display_name": Field(lambda run: run.status.display_name, str),
        "owner.tenant": Field(lambda run: run.owner.tenant, str),
        "owner.key_id": Field(lambda run: run.owner.key_id, str),
        "create_time": Field(lambda run: instant(run.create_time), datetime),
        "update_time": Field(lambda run: instant(run.update_time), datetime),
        "end_time": Field(lambda run: instant(run.status.end_time), datetime),
    }
)
