"""Job records in Redis: what was asked, where it stands, how it ended.

A hash holds the job as protobuf with the fence of its last writer; each change also goes to a
bounded stream that watchers block on. Writes carry the lease's fence, so that a consumer that
lost its job cannot overwrite its successor's word. Knows nothing of how jobs run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, cast

from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import NotFound, Unavailable
from plinth.v1 import trainer_pb2 as pb

ENDED = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)
_EVENTS = 500  # kept per job
_EVENTS_TTL_S = 3600  # after the job's end
_BLOCK_MS = 1000

# KEYS job, events; ARGV job bytes, fence ("" creates, and only where there is none), ended
_WRITE = """
local fence = redis.call('HGET', KEYS[1], 'fence')
if ARGV[2] == '' then
  if fence then return 0 end
elseif not fence then
  fence = '0'
end
if ARGV[2] ~= '' and tonumber(ARGV[2]) < tonumber(fence) then return 0 end
redis.call('HSET', KEYS[1], 'job', ARGV[1], 'fence', ARGV[2] == '' and '0' or ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'job', ARGV[1])
if ARGV[3] == '1' then
  redis.call('EXPIRE', KEYS[2], ARGV[5])
else
  redis.call('PERSIST', KEYS[2])
end
return 1
"""


class JobRecords:
    """All jobs of a stack."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._write = redis.register_script(_WRITE)

    async def create(self, job: pb.Job) -> bool:
        """False when a job of that id is there already."""
        with redis_errors():
            await self._redis.zadd(redis_keys.jobs(), {job.job_id: job.submitted_unix_ms}, nx=True)
        return await self._put(job, "")

    async def write(self, job: pb.Job, fence: int) -> bool:
        """False when a later lease holder has written."""
        return await self._put(job, str(fence))

    async def overwrite(self, job: pb.Job) -> None:
        """For a job that nobody holds: keeps the fence of its last holder."""
        with redis_errors():
            fence = await cast(
                Awaitable[bytes | None], self._redis.hget(redis_keys.job(job.job_id), "fence")
            )
        await self._put(job, (fence or b"0").decode())

    async def cancel_waiting(self, job_id: str) -> pb.Job:
        """Mark a job that was cancelled before anybody took it; one that ended stays as it is."""
        job = await self.get(job_id)
        if job.state not in ENDED:
            job.state, job.finished_unix_ms = pb.JOB_STATE_CANCELLED, time.time_ns() // 1_000_000
            await self.overwrite(job)
        return job

    async def _put(self, job: pb.Job, fence: str) -> bool:
        ended = "1" if job.state in ENDED else "0"
        with redis_errors():
            answer: Any = await self._write(
                keys=[redis_keys.job(job.job_id), redis_keys.job_events(job.job_id)],
                args=[job.SerializeToString(), fence, ended, _EVENTS, _EVENTS_TTL_S],
            )
        return bool(answer)

    async def find(self, job_id: str) -> pb.Job | None:
        with redis_errors():
            raw = await cast(
                Awaitable[bytes | None], self._redis.hget(redis_keys.job(job_id), "job")
            )
        return None if raw is None else pb.Job.FromString(raw)

    async def get(self, job_id: str) -> pb.Job:
        """Raises NotFound."""
        if (job := await self.find(job_id)) is None:
            raise NotFound(f"no job {job_id!r}", reason="JOB_NOT_FOUND", field="job_id")
        return job

    async def latest(self, limit: int) -> list[pb.Job]:
        """Newest first."""
        with redis_errors():
            ids = cast(
                list[bytes], await self._redis.zrange(redis_keys.jobs(), 0, limit - 1, desc=True)
            )
        found = [await self.find(raw.decode()) for raw in ids]
        return [job for job in found if job is not None]

    async def watch(self, job_id: str) -> AsyncGenerator[pb.Job, None]:
        """The job as it is, then each change, until it has ended; outlives a Redis that is gone."""
        last = await self._last_event(job_id)
        job = await self.get(job_id)
        yield job
        while job.state not in ENDED:
            try:
                with redis_errors():
                    read: Any = await self._redis.xread(
                        {redis_keys.job_events(job_id): last}, block=_BLOCK_MS
                    )
            except Unavailable:
                last, job = await self._after_outage(job_id)
                yield job
                continue
            # Only the newest matters to somebody who fell behind.
            for entry, fields in read[0][1][-1:] if read else []:
                last, job = entry, pb.Job.FromString(fields[b"job"])
                yield job

    async def _after_outage(self, job_id: str) -> tuple[bytes, pb.Job]:
        # The client retries with back-off; one more failure goes to the watcher.
        last = await self._last_event(job_id)
        return last, await self.get(job_id)

    async def _last_event(self, job_id: str) -> bytes:
        with redis_errors():
            newest = await self._redis.xrevrange(redis_keys.job_events(job_id), count=1)
        return cast(bytes, newest[0][0]) if newest else b"0"
