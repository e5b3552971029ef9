"""What a run's screen says of a job at the trainer."""

from __future__ import annotations

from plinth.coordinator.steps.jobs import _outcome, describe
from plinth.shared.api.structs import struct
from plinth.v1 import artifacts_pb2
from plinth.v1 import jobs_pb2 as pb


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


def test_a_training_hands_on_its_held_out_figures() -> None:
    published = {"train_loss": 0.1, "validation_accuracy": 0.9, "validation_chosen_fallen": 1.0}
    progress = pb.JobProgress(done=3, total=3, unit="step", loss=0.1, figures={"kl": 2.5})
    made = artifacts_pb2.Artifact(
        name="artifacts/dpo@1",
        manifest=artifacts_pb2.ArtifactManifest(metrics=struct(published)),
    )
    job = pb.Job(state=pb.JOB_STATE_SUCCEEDED, progress=progress, artifact=made)
    figures = _outcome(job).metrics
    assert figures["validation_chosen_fallen"] == 1
    assert (figures["validation_accuracy"], figures["kl"], figures["steps"]) == (0.9, 2.5, 3)
