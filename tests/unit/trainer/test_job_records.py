"""Watches of jobs: each state once, over breaks, and any number of them beside all other work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.connection import MAX_CONNECTIONS
from plinth.shared.tasks import cancel_and_wait
from plinth.trainer.records import JobRecords
from plinth.v1 import jobs_pb2 as pb

QUEUED, RUNNING, ENDED = pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_SUCCEEDED


@pytest.fixture
async def feed(redis_client: Redis) -> AsyncIterator[ChangeFeed]:
    feed = ChangeFeed(redis_client, redis_keys.job_changes())
    await feed.open()
    follower = asyncio.create_task(feed.follow())
    yield feed
    await cancel_and_wait(follower)


async def live(records: JobRecords, rng: random.Random, attempts: int) -> list[tuple[int, int]]:
    """A job that is begun again and again, and what it was."""
    job = await records.get("j")
    was = [(job.state, job.attempts)]
    for attempt in range(1, attempts + 1):
        for job.state, job.attempts in ((RUNNING, attempt), (QUEUED, attempt)):
            for done in range(rng.randint(1, 4)):
                job.progress.done = done
                await records.write(job, attempt)
            was.append((job.state, job.attempts))
    job.state = ENDED
    await records.write(job, attempts)
    return [*was, (job.state, job.attempts)]


async def watched(
    records: JobRecords, feed: ChangeFeed, rng: random.Random, began: asyncio.Semaphore
) -> list[tuple[int, int]]:
    """What a client sees whose watch breaks after some messages, or while it waits."""
    seen: list[rec.JobRecord] = []
    position = ""
    while not seen or seen[-1].state != ENDED:
        watch = records.watch(feed, "j", position)
        try:
            for _ in range(rng.randint(1, 3)):
                position, job = await asyncio.wait_for(anext(watch), rng.choice((0.02, 60)))
                seen.append(job)
                began.release()
        except (StopAsyncIteration, TimeoutError):
            pass
        finally:
            await watch.aclose()
    states = [(job.state, job.attempts) for job in seen]
    return [state for at, state in enumerate(states) if at == 0 or state != states[at - 1]]


@pytest.mark.parametrize("seed", range(4))
async def test_broken_watches_tell_each_state_once(
    redis_client: Redis, feed: ChangeFeed, seed: int
) -> None:
    rng, records = random.Random(seed), JobRecords(redis_client)
    await records.create(rec.JobRecord(job_id="j", state=QUEUED, submitted_unix_ms=1))
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        began = [asyncio.Semaphore(0) for _ in range(5)]
        watchers = [tasks.create_task(watched(records, feed, rng, one)) for one in began]
        for one in began:
            await one.acquire()
        was = tasks.create_task(live(records, rng, attempts=5))
    for watcher in watchers:
        assert watcher.result() == was.result()


async def test_more_watchers_than_connections_keep_nobody_from_redis(
    redis_client: Redis, feed: ChangeFeed
) -> None:
    """A trainer's heartbeat and its lease go over the same connections as its watches."""
    records, count = JobRecords(redis_client), 3 * MAX_CONNECTIONS
    job = rec.JobRecord(job_id="j", state=RUNNING, submitted_unix_ms=1)
    await records.create(job)
    began: asyncio.Queue[None] = asyncio.Queue()

    async def watch() -> int:
        state = QUEUED
        async for _, told in records.watch(feed, "j"):
            state = told.state
            began.put_nowait(None)
        return state

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        watchers = [tasks.create_task(watch()) for _ in range(count)]
        for _ in range(count):
            await began.get()
        async with asyncio.timeout(1.0):
            await records.get("j")
        job.state = ENDED
        await records.write(job, 1)
    assert {watcher.result() for watcher in watchers} == {ENDED}
