"""Job records in Redis: what was asked, where it stands, how it ended.

A hash holds the job as protobuf (`JobRecord`) with the fence of its last writer; each change also
goes to a bounded stream of the job's own. That holds an entry for each state of the job, so that a
watcher who was away misses none; what changes no state (progress) takes the place of the last
entry. The job's id goes to a stream of all jobs, which each trainer follows once for all its
watchers (`change_feed.py`). Writes carry the lease's fence, so that a consumer that lost its job
cannot overwrite its successor's word. Knows nothing of how jobs run.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, cast

from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.api.listing import Damaged
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.connection import redis_errors
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound, Unavailable
from plinth.shared.time_index import TimeIndex
from plinth.v1 import jobs_pb2 as pb

ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)
_EVENTS = 500  # states kept per job; each attempt has two
_EVENTS_TTL_S = 3600  # after the job's end
_CHANGES = 10_000  # of all jobs
_FENCE_TTL_S = 86_400  # of a job that was deleted
_OUTAGE_S = 0.5
Position = tuple[int, int]  # of an entry in the stream of events: its id, as numbers

# KEYS job, events; ARGV job bytes, fence ("" creates, and only where there is none), ended, most
# events, their life after the end, the state. What a job that was deleted leaves behind is a fence,
# which no late writer of it passes.
_WRITE = """
local fence = redis.call('HGET', KEYS[1], 'fence') or '0'
if ARGV[2] == '' then
  if redis.call('HEXISTS', KEYS[1], 'job') == 1 then return 0 end
  redis.call('PERSIST', KEYS[1])
elseif tonumber(ARGV[2]) < tonumber(fence) then
  return 0
end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local event = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*',
  'job', ARGV[1], 'state', ARGV[6])
if last and last[2][4] == ARGV[6] then redis.call('XDEL', KEYS[2], last[1]) end
redis.call('HSET', KEYS[1], 'job', ARGV[1], 'fence', ARGV[2] == '' and fence or ARGV[2],
  'event', event)
if ARGV[3] == '1' then
  redis.call('EXPIRE', KEYS[2], ARGV[5])
else
  redis.call('PERSIST', KEYS[2])
end
return 1
"""
# KEYS job, events; ARGV life of the fence
_DELETE = """
if redis.call('HDEL', KEYS[1], 'job', 'event') == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
"""


class JobRecords:
    """All jobs of a stack."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._write = redis.register_script(_WRITE)
        self._delete = redis.register_script(_DELETE)
        self._index = TimeIndex(redis, redis_keys.jobs())

    async def create(self, job: rec.JobRecord) -> bool:
        """False when a job of that id is there already."""
        with redis_errors():
            await self._redis.zadd(redis_keys.jobs(), {job.job_id: job.submitted_unix_ms}, nx=True)
        return await self._put(job, "")

    async def write(self, job: rec.JobRecord, fence: int) -> bool:
        """False when a later lease holder has written."""
        return await self._put(job, str(fence))

    async def overwrite(self, job: rec.JobRecord) -> None:
        """For a job that nobody holds: keeps the fence of its last holder."""
        with redis_errors():
            fence = await cast(
                Awaitable[bytes | None], self._redis.hget(redis_keys.job(job.job_id), "fence")
            )
        await self._put(job, (fence or b"0").decode())

    async def cancel_waiting(self, job_id: str) -> rec.JobRecord:
        """Mark a job that was cancelled before anybody took it; one that ended stays as it is."""
        job = await self.get(job_id)
        if job.state not in ENDED:
            job.state, job.finished_unix_ms = pb.JOB_STATE_CANCELLED, time.time_ns() // 1_000_000
            await self.overwrite(job)
        return job

    async def _put(self, job: rec.JobRecord, fence: str) -> bool:
        ended = "1" if job.state in ENDED else "0"
        job.changed_unix_ms = time.time_ns() // 1_000_000
        with redis_errors():
            answer: Any = await self._write(
                keys=[redis_keys.job(job.job_id), redis_keys.job_events(job.job_id)],
                args=[job.SerializeToString(), fence, ended, _EVENTS, _EVENTS_TTL_S, _state(job)],
            )
            if answer:
                changes = redis_keys.job_changes()
                await self._redis.xadd(changes, {"job": job.job_id}, maxlen=_CHANGES)
        return bool(answer)

    async def find(self, job_id: str) -> rec.JobRecord | None:
        """DataLoss: its record is damaged."""
        with redis_errors():
            raw = await cast(
                Awaitable[bytes | None], self._redis.hget(redis_keys.job(job_id), "job")
            )
        return None if raw is None else _job(job_id, raw)

    async def get(self, job_id: str) -> rec.JobRecord:
        """Raises NotFound."""
        if (job := await self.find(job_id)) is None:
            raise _unknown(job_id)
        return job

    async def newest(
        self, position: str = "", count: int = 1
    ) -> list[tuple[str, rec.JobRecord | Damaged | None]]:
        """(position, job) of at most `count` behind a position, newest first; None for one that
        was deleted meanwhile."""
        entries = await self._index.newest(position, count)
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for _, job_id in entries:
                    pipe.hget(redis_keys.job(job_id), "job")
                found = await pipe.execute()
        return [(at, _told(job_id, raw)) for (at, job_id), raw in zip(entries, found, strict=True)]

    async def delete(self, job_id: str) -> bool:
        """Forgets a job that has ended and that no queue holds. False: there is none."""
        with redis_errors():
            keys = [redis_keys.job(job_id), redis_keys.job_events(job_id)]
            gone: Any = await self._delete(keys=keys, args=[_FENCE_TTL_S])
            await self._redis.zrem(redis_keys.jobs(), job_id)
        return bool(gone)

    async def watch(
        self, feed: ChangeFeed, job_id: str, after: str = ""
    ) -> AsyncGenerator[tuple[str, rec.JobRecord], None]:
        """(position, job): the job as it is, or with a position what it became after that; then
        each change until it has ended; `feed` is that of job_changes. Outlives a Redis that is
        gone. NotFound; InvalidArgument for what is no position."""
        last = _position(after)
        newest, job = await self._newest(job_id)
        if last is None or last > newest:  # beyond it: the records were put back from a backup
            last = newest
            yield _written(last), job
        while not (last >= newest and job.state in ENDED):
            seen = feed.seen(job_id)
            try:
                if not (entries := await self._events(job_id, last)):
                    await feed.changed(job_id, seen)
                    entries = await self._events(job_id, last)
                # Nothing came: look at the record, since a stream does not outlive it for long.
                newest, job = await self._newest(job_id)
            except Unavailable:
                await asyncio.sleep(_OUTAGE_S)
                continue
            for position, told in entries:
                last = position
                yield _written(position), told
            if not entries and last < newest and not await self._events(job_id, last):
                last = newest  # trimmed, or its time was over
                yield _written(last), job

    async def _events(self, job_id: str, last: Position) -> list[tuple[Position, rec.JobRecord]]:
        """Those after `last`."""
        with redis_errors():
            events = redis_keys.job_events(job_id)
            found: Any = await self._redis.xrange(events, min=f"({_written(last)}")
        return [(_read(entry), rec.JobRecord.FromString(fields[b"job"])) for entry, fields in found]

    async def _newest(self, job_id: str) -> tuple[Position, rec.JobRecord]:
        """The job and the event that made it so. NotFound, DataLoss."""
        with redis_errors():
            values: Any = await cast(
                Awaitable[Any], self._redis.hmget(redis_keys.job(job_id), ["job", "event"])
            )
        raw, event = values
        if raw is None:
            raise _unknown(job_id)
        return (0, 0) if event is None else _read(event), _job(job_id, raw)


def _job(job_id: str, raw: bytes) -> rec.JobRecord:
    try:
        return rec.JobRecord.FromString(raw)
    except DecodeError as error:
        raise DataLoss(
            f"the record of job {job_id} is damaged: {error}", reason="RECORD_DAMAGED"
        ) from error


def _told(job_id: str, raw: bytes | None) -> rec.JobRecord | Damaged | None:
    """For a list."""
    try:
        return None if raw is None else _job(job_id, raw)
    except DataLoss:
        return Damaged(f"jobs/{job_id}")


def _state(job: rec.JobRecord) -> str:
    """All in it that is no progress."""
    made = f"{job.artifact.name}@{job.artifact.version}"
    return repr((job.state, job.attempts, job.error, made))


def _position(token: str) -> Position | None:
    if not token:
        return None
    if not re.fullmatch(r"[0-9]{1,19}-[0-9]{1,19}", token, re.ASCII):
        raise InvalidArgument(
            f"resume_token {token[:40]!r} is none of WatchJob's: give the last response's as it "
            "was, or none to begin with the job as it is",
            field="resume_token",
        )
    return _read(token.encode())


def _read(event: bytes) -> Position:
    milliseconds, _, number = event.partition(b"-")
    return int(milliseconds), int(number)


def _written(position: Position) -> str:
    return f"{position[0]}-{position[1]}"


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"no job {job_id!r}", reason="JOB_NOT_FOUND", field="name")
