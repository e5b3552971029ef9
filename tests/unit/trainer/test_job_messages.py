"""Jobs as the API tells of them hold all that their records do."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from job_specs import train_spec
from plinth.algos.schedules import KINDS
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared.api.enums import words
from plinth.shared.api.structs import plain_values
from plinth.shared.api.times import seconds, unix_ms
from plinth.shared.objectives import KL_ESTIMATORS, OBJECTIVES
from plinth.trainer.data.passages import PASSAGES
from plinth.trainer.data.selected import SELECTIONS, TIES
from plinth.trainer.job_messages import JOB_FILTERS, job_message, progress_message
from plinth.trainer.loop.config import PRECISIONS
from plinth.trainer.loop.job_folder import JobProgress, ProgressUnit
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import owner_pb2

RECORD = rec.JobRecord(
    job_id="j",
    spec=pb.JobSpec(output_name="chat", train=train_spec(objective="sft", max_seconds=9.5)),
    state=pb.JOB_STATE_SUCCEEDED,
    progress=pb.JobProgress(done=3, total=4, unit=pb.PROGRESS_UNIT_STEP),
    error="why",
    artifact=rec.PublishedArtifact(name="chat", version=7, metrics_json='{"loss": 1.5, "n": 3}'),
    attempts=2,
    submitted_unix_ms=1_764_500_000_123,
    started_unix_ms=1_764_500_001_000,
    finished_unix_ms=1_764_500_009_456,
    owner=owner_pb2.Owner(tenant="acme", key_id="k1"),
    changed_unix_ms=1_764_500_010_000,
)


def back(job: pb.Job) -> rec.JobRecord:
    """The record that a message was made of."""
    status = job.status
    name, _, version = status.artifact.removeprefix("artifacts/").partition("@")
    return rec.JobRecord(
        job_id=job.name.removeprefix("jobs/"),
        spec=job.spec,
        state=status.state,
        progress=status.progress,
        error=status.error,
        artifact=rec.PublishedArtifact(
            name=name,
            version=int(version),
            metrics_json=json.dumps(plain_values(status.metrics), sort_keys=True),
        ),
        attempts=status.attempts,
        submitted_unix_ms=unix_ms(job.create_time),
        started_unix_ms=unix_ms(status.start_time),
        finished_unix_ms=unix_ms(status.end_time),
        owner=job.owner,
        changed_unix_ms=unix_ms(job.update_time),
    )


def test_there_and_back() -> None:
    assert back(job_message(RECORD)) == RECORD
    waits = job_message(rec.JobRecord(job_id="j", submitted_unix_ms=1))
    assert not waits.status.HasField("start_time")
    assert not waits.status.HasField("progress")
    assert waits.status.artifact == ""


def test_progress_says_how_long_it_will_take() -> None:
    told = progress_message(JobProgress(1, 2, eta_seconds=75.5, validation_bits_per_byte=1.5))
    assert seconds(told.remaining_duration) == 75.5
    assert (told.unit, told.validation_bits_per_byte) == (pb.PROGRESS_UNIT_STEP, 1.5)
    assert not progress_message(JobProgress(1, 2)).HasField("remaining_duration")


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (pb.Objective, OBJECTIVES),
        (pb.LearningRateSchedule, KINDS),
        (pb.Precision, PRECISIONS),
        (pb.SampleSelection, SELECTIONS),
        (pb.SampleTies, TIES),
        (pb.PassageForm, PASSAGES),
        (pb.ProgressUnit, get_args(ProgressUnit)),
        (pb.KlPlacement, KL_ESTIMATORS),
        (pb.KlEstimator, [one for some in KL_ESTIMATORS.values() for one in some]),
    ],
)
def test_the_trainer_knows_each_word_of_the_api_and_no_other(kind, known) -> None:
    assert set(words(kind)) == set(known)


def test_filters() -> None:
    job = job_message(RECORD)
    for text, wanted in (
        ("state = SUCCEEDED", True),
        ('artifact = "artifacts/chat@*" AND owner.tenant = acme', True),
        ('name = "jobs/k*"', False),
        ('end_time < "2025-01-01T00:00:00Z"', False),
    ):
        assert JOB_FILTERS.parse(text)(job) is wanted
