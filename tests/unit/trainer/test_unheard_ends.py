"""A job whose replica died has an end, too: its record says what became of it."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared.queue import Queue
from plinth.trainer.records import JobRecords
from plinth.trainer.unheard import tell_ends
from plinth.v1 import jobs_pb2 as pb


async def begun(queue: Queue, records: JobRecords) -> None:
    """A job that a replica holds and says to run."""
    job = rec.JobRecord(job_id="j", state=pb.JOB_STATE_QUEUED, submitted_unix_ms=1)
    await records.create(job)
    await queue.add("j", job.SerializeToString())
    lease = await queue.claim("one", wait_s=PATIENCE_S)
    assert lease is not None
    job.state = pb.JOB_STATE_RUNNING
    await records.write(job, lease.fence)


async def lapsed(queue: Queue, state: str) -> None:
    """Until another replica has found out that the first is dead."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := await queue.find("j")) is None or found.state != state:
            assert await queue.claim("two", wait_s=0.02) is None


@pytest.mark.parametrize(
    ("cancelled", "queued", "ended"),
    [(True, "cancelled", pb.JOB_STATE_CANCELLED), (False, "dead", pb.JOB_STATE_FAILED)],
)
async def test_the_record_says_how_it_ended(
    redis_client: Redis, cancelled: bool, queued: str, ended: int
) -> None:
    queue = Queue(redis_client, "jobs", lease_s=0.05, max_attempts=1)
    records = JobRecords(redis_client)
    await begun(queue, records)
    if cancelled:
        await queue.cancel("j")
    await tell_ends(queue, records)
    assert (await records.get("j")).state == pb.JOB_STATE_RUNNING, "its holder may tell it yet"
    await lapsed(queue, queued)
    for _ in range(2):
        await tell_ends(queue, records)
        job = await records.get("j")
        assert job.state == ended and job.finished_unix_ms
    assert bool(job.error) != cancelled


async def test_what_has_no_record_ends_nothing(redis_client: Redis) -> None:
    queue = Queue(redis_client, "jobs")
    await queue.add("gone", b"")
    await queue.cancel("gone")
    await tell_ends(queue, JobRecords(redis_client))
    assert await queue.cancelled() == ["gone"]
