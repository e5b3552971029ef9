"""What a run's screen says of a job at the trainer."""

from __future__ import annotations

from plinth.coordinator.steps.jobs import _outcome, describe
from plinth.shared.api.structs import struct
from plinth.shared.api.times import duration
from plinth.v1 import jobs_pb2 as pb


def test_a_job_that_waits_for_another_attempt_says_why() -> None:
    job = pb.Job(status=pb.JobStatus(state=pb.JOB_STATE_QUEUED))
    assert describe(job) == "waits for a trainer that is free"
    job.status.attempts, job.status.error = 3, "no tokenizer replica is up"
    told = describe(job)
    assert "no tokenizer replica is up" in told
    assert "3" in told


def test_a_job_in_work_says_how_far_it_is() -> None:
    progress = pb.JobProgress(
        done=120,
        total=900,
        unit=pb.PROGRESS_UNIT_STEP,
        loss=3.21,
        remaining_duration=duration(130),
    )
    job = pb.Job(status=pb.JobStatus(state=pb.JOB_STATE_RUNNING, progress=progress))
    assert describe(job) == "step 120/900 · loss 3.210 · 2m10s left"


def test_a_training_hands_on_its_held_out_figures() -> None:
    published = {"train_loss": 0.1, "validation_accuracy": 0.9, "validation_chosen_fallen": 1.0}
    progress = pb.JobProgress(
        done=3, total=3, unit=pb.PROGRESS_UNIT_STEP, loss=0.1, figures={"kl": 2.5}
    )
    status = pb.JobStatus(
        state=pb.JOB_STATE_SUCCEEDED,
        progress=progress,
        artifact="artifacts/dpo@1",
        metrics=struct(published),
    )
    job = pb.Job(status=status)
    figures = _outcome(job).metrics
    assert figures["validation_chosen_fallen"] == 1
    assert (figures["validation_accuracy"], figures["kl"], figures["steps"]) == (0.9, 2.5, 3)
