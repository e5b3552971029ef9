"""One leader among the coordinator's replicas: a lease in Redis with a fencing number.

The lease is a key that lapses unless it is renewed; whoever takes it gets the next number of a
counter, its fence. What a leader that was suspended, and does not know that it is deposed, can
still do:

    in Redis, nothing   a run's record (`runs.py`) and a canary's route (`shared/canary.py`) change
                        by scripts that also compare the lease
    on the store        results, aliases and deployments carry the fence of who wrote last, and are
                        refused to a lower one (`results.py`, `shared/fencing.py`). Redis and the
                        store have no common transaction: until its successor has written or claimed
                        a record, the deposed leader may still write it
    at other stages     a job is submitted and cancelled by an id that its successor uses as well;
                        a leader looks at its own clock first (`Leadership.held`)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import Unavailable
from plinth.shared.fencing import Fence
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

LEASE = redis_keys.LEADER_LEASE
_log = get_logger("plinth.coordinator")

# KEYS: lease, fence counter. ARGV: owner, ttl in ms. Gives the lease's value, or nil if taken. The
# fence is the next number, and the time at least: a Redis that lost its data gives none twice.
_ACQUIRE = """
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, string.len(ARGV[1]) + 1) == ARGV[1] .. '|' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return held
end
if held then return nil end
local t = redis.call('TIME')
local number = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1,
  t[1] * 1000 + math.floor(t[2] / 1000))
number = string.format('%.0f', number)
redis.call('SET', KEYS[2], number)
local value = ARGV[1] .. '|' .. number
redis.call('SET', KEYS[1], value, 'NX', 'PX', ARGV[2])
return value
"""
# KEYS: lease. ARGV: value, ttl in ms.
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class Leadership:
    """A lease held: `value` is what its key holds, `fence` its number."""

    def __init__(self, value: str, ttl_s: float, since: float) -> None:
        self.value = value
        self.fence = int(value.rsplit("|", 1)[1])
        self._ttl_s = ttl_s
        self._until = since + ttl_s

    def fences(self, run: int = 0) -> Fence:
        """For what this leader writes; run: number of the run that it writes for."""
        return Fence(self.fence, run, self.value)

    def renewed(self, since: float) -> None:
        """since: monotonic time before the renewal was sent; the lease can't lapse earlier."""
        self._until = since + self._ttl_s

    @property
    def held(self) -> bool:
        """Whether the lease can't have lapsed yet, by this process's own clock."""
        return time.monotonic() < self._until


class LeaderLease:
    """Takes part in the election for one replica."""

    def __init__(self, redis: Redis, owner: str, *, ttl_s: float) -> None:
        """owner: unique to this process's life. ttl_s: how long a dead leader blocks the next."""
        self._redis = redis
        self._owner = owner
        self._ttl_s = ttl_s
        self._acquire = redis.register_script(_ACQUIRE)
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)
        self.leadership: Leadership | None = None

    async def lead(self, work: Callable[[Leadership], Awaitable[None]]) -> None:
        """Waits for the lease again and again; runs `work` while it is held and cancels it when
        it is lost. Until cancelled; Redis may go and come back meanwhile."""
        while True:
            leadership = await self._acquired()
            _log.info("leads", fence=leadership.fence)
            self.leadership = leadership
            task = asyncio.ensure_future(work(leadership))
            try:
                await self._keep(leadership, task)
            finally:
                self.leadership = None
                try:
                    await cancel_and_wait(task)
                finally:  # also when the cancellation came twice
                    await self._give_back(leadership)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("the leader's work failed; it starts again", exc_info=error)
            await asyncio.sleep(self._ttl_s / 10)

    async def _acquired(self) -> Leadership:
        while True:
            since = time.monotonic()
            try:
                with redis_errors():
                    value = await self._acquire(
                        keys=[redis_keys.lease(LEASE), redis_keys.fence(LEASE)],
                        args=[self._owner, int(self._ttl_s * 1000)],
                    )
            except Unavailable:
                value = None  # Redis is gone: wait for it
            if value is not None:
                return Leadership(value.decode(), self._ttl_s, since)
            await asyncio.sleep(self._ttl_s / 5)

    async def _keep(self, leadership: Leadership, task: asyncio.Future[None]) -> None:
        """Renews the lease until it is lost or the work ends."""
        while not task.done():
            await asyncio.wait([task], timeout=self._ttl_s / 4)
            since = time.monotonic()
            try:
                with redis_errors():
                    kept = await self._renew(
                        keys=[redis_keys.lease(LEASE)],
                        args=[leadership.value, int(self._ttl_s * 1000)],
                    )
            except Unavailable:
                kept = leadership.held  # until it may have lapsed, nobody else can have it
            else:
                if kept:
                    leadership.renewed(since)
            if not kept:
                _log.warning("lost the lead", fence=leadership.fence)
                return

    async def _give_back(self, leadership: Leadership) -> None:
        try:
            with redis_errors():
                await self._release(keys=[redis_keys.lease(LEASE)], args=[leadership.value])
        except Unavailable:
            return  # it lapses by itself
