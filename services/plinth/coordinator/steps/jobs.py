"""A step that is one job at the trainer: submit by a fixed id, follow it, take its artifact."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

from plinth.coordinator.steps.contract import Progress, StepOutcome, Tools, Work
from plinth.shared.api.structs import plain_values
from plinth.shared.api.times import seconds, unix_ms
from plinth.shared.errors import FailedPrecondition, Internal, NotFound, Unavailable
from plinth.shared.rpc.watching import watch
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import jobs_pb2_grpc as rpc

_ENDED = {
    pb.JOB_STATE_SUCCEEDED,
    pb.JOB_STATE_FAILED,
    pb.JOB_STATE_CANCELLED,
}


async def follow_job(
    work: Work, tools: Tools, spec: pb.JobSpec
) -> AsyncIterator[Progress | StepOutcome]:
    """Runs `spec` under the work's job id. The trainer knows the id from the first submission,
    so after any interruption this goes on with the same job."""
    trainer = await tools.clients.trainer(work.principal)
    created = await trainer.CreateJob(
        pb.CreateJobRequest(job_id=work.job_id, job=pb.Job(spec=spec))
    )
    job = created.job
    if job.status.state not in _ENDED:
        stream = watch(
            tools.clients,
            "trainer",
            lambda channel: rpc.JobServiceStub(channel).WatchJob,
            pb.WatchJobRequest(name=job.name),
            principal=work.principal,
        )
        async with aclosing(stream) as messages:
            async for message in messages:
                if not message.HasField("job"):
                    continue  # a heartbeat
                job = message.job
                yield Progress(_fraction(job), describe(job))
                if job.status.state in _ENDED:
                    break
    yield _outcome(job)


def _outcome(job: pb.Job) -> StepOutcome:
    status = job.status
    if status.state == pb.JOB_STATE_SUCCEEDED:
        if not status.artifact:
            raise Internal(f"{job.name} succeeded and names no artifact")
        return StepOutcome(status.artifact.removeprefix("artifacts/"), _metrics(job))
    if status.state == pb.JOB_STATE_FAILED:
        raise FailedPrecondition(status.error or "the job failed", reason="JOB_FAILED")
    if status.state == pb.JOB_STATE_CANCELLED:
        raise FailedPrecondition("the job was cancelled at the trainer", reason="JOB_CANCELLED")
    raise Unavailable("the trainer stopped reporting before the job ended")


async def cancel_job(work: Work, tools: Tools) -> None:
    """Cancels the work's job; a job that the trainer never saw is no error."""
    trainer = await tools.clients.trainer(work.principal)
    with suppress(NotFound):
        await trainer.CancelJob(pb.CancelJobRequest(name=f"jobs/{work.job_id}"))


def describe(job: pb.Job) -> str:
    """One line for people: "step 120/900 · loss 3.21 · 14,200 tokens/s · 2m10s left"."""
    status, progress = job.status, job.status.progress
    if status.state == pb.JOB_STATE_QUEUED:
        if status.error:
            return (
                f"waits at the trainer for another attempt, after {status.attempts}: {status.error}"
            )
        return "waits for a trainer that is free"
    parts = []
    if progress.total and progress.unit == pb.PROGRESS_UNIT_STEP:
        parts.append(f"step {progress.done:,}/{progress.total:,}")
    elif progress.unit == pb.PROGRESS_UNIT_BYTE and progress.done:
        total = f" of {progress.total / 1e6:.1f}" if progress.total else ""
        parts.append(f"{progress.done / 1e6:.1f}{total} MB")
    if progress.loss:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.HasField("validation_bits_per_byte"):
        parts.append(f"held out {progress.validation_bits_per_byte:.3f} bits per byte")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if (left := seconds(progress.remaining_duration)) >= 1:
        parts.append(f"{_duration(left)} left")
    if progress.note:
        parts.append(progress.note)
    return " · ".join(parts)


def _duration(left: float) -> str:
    minutes, rest = divmod(round(left), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _fraction(job: pb.Job) -> float:
    progress = job.status.progress
    return min(1.0, progress.done / progress.total) if progress.total else 0.0


def _metrics(job: pb.Job) -> dict[str, Any]:
    """What it counted, what it took and left out (`shared/intake.py`), and its held-out figures."""
    status, progress = job.status, job.status.progress
    figures: dict[str, Any] = {}
    if progress.unit == pb.PROGRESS_UNIT_STEP:
        figures = {
            "steps": progress.done,
            "loss": progress.loss,
            "tokens_per_second": progress.tokens_per_second,
        }
        if progress.HasField("validation_bits_per_byte"):
            figures["validation_bits_per_byte"] = progress.validation_bits_per_byte
    elif progress.unit == pb.PROGRESS_UNIT_BYTE:
        figures = {"bytes": progress.done}
    took = (unix_ms(status.end_time) - unix_ms(status.start_time)) / 1000
    if status.HasField("start_time") and took >= 0:
        figures["seconds"] = took
    published = plain_values(status.metrics)
    if intake := published.get("intake"):
        figures["intake"] = intake
    # What the model does on held-out data, before and after; of a policy its last update's KL too.
    figures |= {name: published[name] for name in published if name.startswith("validation_")}
    if "kl" in progress.figures:
        figures["kl"] = progress.figures["kl"]
    return figures
