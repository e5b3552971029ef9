"""Takes jobs from the queue, one at a time, and sees each to its end.

A job is claimed under a lease that heartbeats keep while it runs. When this process dies, the
lease lapses and another attempt, here or elsewhere, goes on from the job's checkpoint. While
Redis is away the work goes on, and what is to be said waits. The record is written before the
queue is told: a job whose record says it ended is only acknowledged when it is met again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared import tracing
from plinth.shared.errors import (
    Cancelled,
    DataLoss,
    Internal,
    PlinthError,
    Unavailable,
    described,
    plain,
)
from plinth.shared.queue import Lease, LeaseLost, Queue
from plinth.shared.store import ArtifactRecord
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger
from plinth.trainer import metrics
from plinth.trainer.execution import Execution, Stopped
from plinth.trainer.job_messages import progress_message, published_artifact
from plinth.trainer.loop.job_folder import JobProgress
from plinth.trainer.records import JobRecords
from plinth.trainer.unheard import tell_ends
from plinth.v1 import jobs_pb2 as pb

QUEUE = "trainer-jobs"
# Each death of a replica costs an attempt, and a checkpoint makes the next one cheap.
MAX_ATTEMPTS = 20
# One that says the same each time is the job's own, and no machine's.
SAME_CRASHES = 3
_CLAIM_S = 5.0
_PROGRESS_S = 0.5
_REDIS_RETRY_S = 0.5

_log = get_logger("plinth.trainer")
T = TypeVar("T")


class JobConsumer:
    """One consumer of a trainer replica."""

    def __init__(
        self,
        name: str,
        queue: Queue,
        records: JobRecords,
        execution: Callable[[rec.JobRecord, int], Execution],
        *,
        lease_s: float,
    ) -> None:
        self._name, self._queue, self._records = name, queue, records
        self._execution, self._lease_s = execution, lease_s
        self._current: Execution | None = None
        self._stopping = asyncio.Event()

    @property
    def running(self) -> int:
        """Jobs in work: 0 or 1."""
        return int(self._current is not None)

    async def run(self) -> None:
        """Until `drain`."""
        while not self._stopping.is_set():
            try:
                lease = await self._claim()
                if lease is not None:
                    await self._attend(lease)
                elif not self._stopping.is_set():
                    await tell_ends(self._queue, self._records)
            except Unavailable as away:
                _log.warning("Redis is away, jobs wait", error=away.message)
                await asyncio.sleep(_REDIS_RETRY_S)
            except LeaseLost as lost:
                _log.warning("job went on elsewhere", error=lost.message)

    def drain(self) -> None:
        """Claim nothing more; the job in work pauses at its next step and is given back."""
        self._stopping.set()
        if self._current is not None:
            self._current.stop("pause")

    async def _claim(self) -> Lease | None:
        """The next job, or None after a while or when it is time to stop."""
        claim = asyncio.create_task(self._queue.claim(self._name, wait_s=_CLAIM_S))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({claim, stop}, return_when=asyncio.FIRST_COMPLETED)
            return claim.result() if claim.done() else None
        finally:
            # A claim that is cancelled gives back what it has just got.
            await cancel_and_wait(claim, stop)

    async def _attend(self, lease: Lease) -> None:
        """Works on it. What breaks while its end is told leaves the rest to its next attempt."""
        try:
            with lease.traced():
                await self._work(lease)
        except (Unavailable, LeaseLost):
            raise
        except Exception:  # noqa: BLE001 - one job must not end the consumer of all
            _log.exception("job's end was not told; its lease lapses", job=lease.id)

    async def _work(self, lease: Lease) -> None:
        try:
            job = await self._records.find(lease.id) or rec.JobRecord.FromString(lease.payload)
        except (DataLoss, DecodeError) as damaged:
            why = f"{lease.id} is no job that can be read: {plain(damaged)}"
            await self._said(lambda: self._queue.fail(lease, why, retry=False))
            return
        if job.state in (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_CANCELLED):
            await self._queue.complete(lease, job.SerializeToString())
            return
        before = job.error
        job.state = pb.JOB_STATE_RUNNING
        job.attempts, job.error = lease.attempts, ""
        job.started_unix_ms = job.started_unix_ms or _now_ms()
        await self._record(job, lease)
        execution = self._current = self._execution(job, lease.fence)
        metrics.RUNNING.set(1)
        try:
            if self._stopping.is_set():
                execution.stop("pause")
            record = await self._attended(execution, job, lease)
        except Stopped as stopped:
            await self._stopped(job, lease, execution, stopped.how)
        except LeaseLost:
            metrics.ENDED.labels("lost").inc()
            raise
        except PlinthError as error:
            _log.info("job failed", job=job.job_id, error=error.message, reason=error.reason)
            await self._failed(job, lease, execution, error, retry=error.transient)
        except Exception as crash:  # noqa: BLE001 - a job's crash must not end the consumer
            _log.exception("job crashed", job=job.job_id)
            # Of an attempt's folder the words are those of no other attempt: the same crash is
            # known again by what it says of the job's.
            whose = str(execution.folder.path)
            inner = Internal(described(crash).replace(whose, str(execution.folder.path.parent)))
            again = inner.message != before or lease.attempts < SAME_CRASHES
            await self._failed(job, lease, execution, inner, retry=again)
        else:
            await self._succeeded(job, lease, execution, record)
        finally:
            self._current = None
            metrics.RUNNING.set(0)
            metrics.forgotten(job.spec.output_name)

    async def _attended(
        self, execution: Execution, job: rec.JobRecord, lease: Lease
    ) -> ArtifactRecord:
        """Run the job in a thread, with heartbeats and progress beside it."""
        work = asyncio.create_task(asyncio.to_thread(execution.run))
        heart = asyncio.create_task(self._heartbeats(lease))
        tell = asyncio.create_task(self._tell_progress(execution, job, lease))
        try:
            await asyncio.wait({work, heart, tell}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                lost = (heart if heart.done() else tell).exception()
                execution.stop("cancel" if isinstance(lost, Cancelled) else "pause")
                await asyncio.wait({work})
                if lost is not None and not isinstance(lost, Cancelled):
                    work.exception()  # whatever it was, the job is another's now
                    raise lost
            return work.result()
        finally:
            if not work.done():  # cancelled from outside: the thread ends at its next step
                execution.stop("pause")
                work.add_done_callback(asyncio.Task.exception)
            await cancel_and_wait(heart, tell)

    async def _heartbeats(self, lease: Lease) -> None:
        """Raises LeaseLost, or Cancelled when the job is to stop."""
        while True:
            try:
                await self._queue.heartbeat(lease)
            except Unavailable:
                _log.warning("Redis is away, the job goes on", job=lease.id)
            # A cancellation shows at the next beat, so beats are not far apart.
            await asyncio.sleep(min(1.0, self._lease_s / 3))

    async def _tell_progress(self, execution: Execution, job: rec.JobRecord, lease: Lease) -> None:
        told: JobProgress | None = None
        while True:
            await asyncio.sleep(_PROGRESS_S)
            progress = await asyncio.to_thread(execution.folder.progress)
            if progress is None or progress == told:
                continue
            job.progress.CopyFrom(progress_message(progress))
            try:
                if not await self._records.write(job, lease.fence):
                    raise LeaseLost(f"job {job.job_id} has a newer attempt")
                told = progress
                metrics.told(job.spec.output_name, progress)
            except Unavailable:
                continue  # told again at the next turn

    # -- ends ------------------------------------------------------------------------------

    async def _succeeded(
        self, job: rec.JobRecord, lease: Lease, execution: Execution, record: ArtifactRecord
    ) -> None:
        metrics.ENDED.labels("succeeded").inc()
        told = await asyncio.to_thread(execution.progress)
        _show(job, _as_published(told, record.manifest.get("metrics") or {}))
        job.artifact.CopyFrom(published_artifact(record))
        await self._end(job, lease, pb.JOB_STATE_SUCCEEDED)
        await self._said(lambda: self._queue.complete(lease, job.SerializeToString()))

    async def _stopped(
        self, job: rec.JobRecord, lease: Lease, execution: Execution, how: str
    ) -> None:
        _show(job, await asyncio.to_thread(execution.progress))
        metrics.ENDED.labels("cancelled" if how == "cancel" else "paused").inc()
        if how == "cancel":
            await self._end(job, lease, pb.JOB_STATE_CANCELLED)
            await asyncio.to_thread(execution.give_up)
            await self._said(lambda: self._queue.fail(lease, "cancelled", retry=False))
        else:
            job.state = pb.JOB_STATE_QUEUED
            await self._record(job, lease)
            await self._said(lambda: self._queue.release(lease))

    async def _failed(
        self,
        job: rec.JobRecord,
        lease: Lease,
        execution: Execution,
        error: PlinthError,
        *,
        retry: bool,
    ) -> None:
        _show(job, await asyncio.to_thread(execution.progress))
        job.error = error.message
        last = not retry or lease.attempts >= MAX_ATTEMPTS
        metrics.ENDED.labels("failed" if last else "retried").inc()
        tracing.failed(error.reason or error.code)
        if last:
            await self._end(job, lease, pb.JOB_STATE_FAILED)
            await asyncio.to_thread(execution.give_up)
        else:
            job.state = pb.JOB_STATE_QUEUED
            await self._record(job, lease)
        await self._said(lambda: self._queue.fail(lease, error.message, retry=not last))

    async def _end(self, job: rec.JobRecord, lease: Lease, state: pb.JobState.ValueType) -> None:
        job.state, job.finished_unix_ms = state, _now_ms()
        await self._record(job, lease)

    async def _record(self, job: rec.JobRecord, lease: Lease) -> None:
        if not await self._said(lambda: self._records.write(job, lease.fence)):
            raise LeaseLost(f"job {job.job_id} has a newer attempt")

    async def _said(self, say: Callable[[], Awaitable[T]]) -> T:
        """Say it once Redis is there to hear it."""
        while True:
            try:
                return await say()
            except Unavailable:
                await asyncio.sleep(_REDIS_RETRY_S)


def _show(job: rec.JobRecord, progress: JobProgress | None) -> None:
    """The last that the work said: people are told of it now and then, and it may be older."""
    if progress is not None:
        job.progress.CopyFrom(progress_message(progress))


def _as_published(progress: JobProgress | None, figures: Mapping[str, Any]) -> JobProgress | None:
    """Of a training, the figures that its model was published with, whichever attempt made it."""
    if "train_loss" not in figures or "steps" not in figures:
        return progress
    steps = int(figures["steps"])
    return replace(
        progress or JobProgress(steps, steps),
        done=steps,
        total=steps,
        loss=float(figures["train_loss"]),
        tokens_per_second=float(figures["tokens_per_second"]),
        validation_bits_per_byte=figures.get("validation_bits_per_byte"),
        eta_seconds=0.0,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
