"""What a run's screen says of a job at the trainer."""

from __future__ import annotations

from plinth.coordinator.steps.jobs import describe
from plinth.v1 import trainer_pb2 as pb


def test_a_job_that_waits_for_another_attempt_says_why() -> None:
    job = pb.Job(state=pb.JOB_STATE_QUEUED)
    assert describe(job) == "waits for a trainer that is free"
    job.attempts, job.error = 3, "no tokenizer replica is up"
    told = describe(job)
    assert "no tokenizer replica is up" in told
    assert "3" in told


def test_a_job_in_work_says_how_far_it_is() -> None:
    progress = pb.JobProgress(done=120, total=900, unit="step", loss=3.21, eta_seconds=130)
    job = pb.Job(state=pb.JOB_STATE_RUNNING, progress=progress)
    assert describe(job) == "step 120/900 · loss 3.210 · 2m10s left"
