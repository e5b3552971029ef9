"""Runs as the API tells of them hold all that their records do."""

from __future__ import annotations

import json

import pytest

from plinth.coordinator.run_messages import RUN_FILTERS, RUNS, run_message
from plinth.coordinator.steps import STEP_KINDS
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.api.enums import word, words
from plinth.shared.api.structs import plain_values
from plinth.shared.api.times import unix_ms
from plinth.shared.errors import InvalidArgument
from plinth.v1 import owner_pb2
from plinth.v1 import runs_pb2 as pb

FIGURES = {"loss": 1.5, "steps": 7, "models": {"baseline": None}, "shown": ["a", True]}
RECORD = rec.RunRecord(
    run_id="r",
    name="nightly",
    state=pb.RUN_STATE_RUNNING,
    steps=[
        rec.StepRecord(
            name="train",
            kind="train",
            state=pb.STEP_STATE_SUCCEEDED,
            input_digest="sha256:ab",
            progress=1.0,
            detail="step 7/7",
            error="none",
            output="chat@7",
            metrics_json=json.dumps(FIGURES),
            job_id="r.train.ab",
            started_unix_ms=1_000,
            finished_unix_ms=2_500,
        ),
        rec.StepRecord(name="exam", kind="evaluate", job_id="r.exam.cd"),
    ],
    error="why",
    pipeline_yaml="name: nightly",
    submitted_unix_ms=1_764_500_000_123,
    finished_unix_ms=1_764_500_009_456,
    revision=9,
    number=4,
    request_digest="sha256:cd",
    forked_from="before",
    forked_at="train",
    owner=owner_pb2.Owner(tenant="acme", key_id="k1"),
    changed_unix_ms=1_764_500_010_000,
)


def back(run: pb.Run) -> rec.RunRecord:
    """The record that a message was made of, but for what the API does not tell."""
    status = run.status
    return rec.RunRecord(
        run_id=run.name.removeprefix("runs/"),
        name=status.display_name,
        state=status.state,
        steps=[
            rec.StepRecord(
                name=step.step_id,
                kind=word(pb.StepKind, step.kind),
                state=step.state,
                input_digest=step.input_digest,
                progress=step.progress,
                detail=step.detail,
                error=step.error,
                output=step.artifact.removeprefix("artifacts/"),
                metrics_json=json.dumps(plain_values(step.metrics)) if step.metrics.fields else "",
                job_id=step.job.removeprefix("jobs/"),
                started_unix_ms=unix_ms(step.start_time),
                finished_unix_ms=unix_ms(step.end_time),
            )
            for step in status.steps
        ],
        error=status.error,
        pipeline_yaml=run.spec.pipeline_yaml,
        submitted_unix_ms=unix_ms(run.create_time),
        finished_unix_ms=unix_ms(status.end_time),
        revision=status.revision,
        forked_from=status.forked_from.removeprefix("runs/"),
        forked_at=status.forked_from_step,
        owner=run.owner,
        changed_unix_ms=unix_ms(run.update_time),
    )


def test_there_and_back() -> None:
    wanted = rec.RunRecord()
    wanted.CopyFrom(RECORD)
    wanted.ClearField("number")
    wanted.ClearField("request_digest")
    wanted.steps[1].job_id = ""  # an evaluation is no job of the trainer's
    told = back(run_message(RECORD))
    assert json.loads(told.steps[0].metrics_json) == FIGURES
    told.steps[0].metrics_json = wanted.steps[0].metrics_json
    assert told == wanted


def test_a_run_of_which_little_is_known_says_no_more() -> None:
    told = run_message(rec.RunRecord(run_id="r", submitted_unix_ms=1))
    assert not told.HasField("owner")
    assert not told.status.HasField("end_time")
    assert told.status.forked_from == ""
    assert unix_ms(told.update_time) == 1  # of a version that did not keep it
    assert run_message(RECORD, pipeline=False).spec.pipeline_yaml == ""


def test_a_step_that_was_reused_has_no_job() -> None:
    record = rec.StepRecord(name="a", kind="data", job_id="j", state=pb.STEP_STATE_REUSED)
    assert run_message(rec.RunRecord(run_id="r", steps=[record])).status.steps[0].job == ""


def test_every_kind_of_step_has_its_word_and_none_else() -> None:
    assert set(words(pb.StepKind)) == set(STEP_KINDS)
    newer = rec.RunRecord(run_id="r", steps=[rec.StepRecord(name="a", kind="dream")])
    assert run_message(newer).status.steps[0].kind == pb.STEP_KIND_UNSPECIFIED


def test_filters() -> None:
    run = run_message(RECORD)
    for text, wanted in (
        ("state = RUNNING", True),
        ("state = PAUSED", False),
        ('name = "runs/r" AND display_name = "night*"', True),
        ("owner.tenant = acme AND owner.key_id != k1", False),
        ('create_time >= "2025-11-30T00:00:00Z" AND end_time < "2025-12-01T00:00:00Z"', True),
    ):
        assert RUN_FILTERS.parse(text)(run) is wanted


@pytest.mark.parametrize("name", ["runs/é", "runs/r:log", "runs/a/b", "runs/", "jobs/r", "r"])
def test_what_is_no_runs_name(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"runs/\{run\}") as caught:
        RUNS.id(name)
    assert caught.value.field == "name"
