"""Per-tenant quotas: requests at a time, and tokens per minute.

Counted in Redis, so that several gateways share one budget, and here as well: this gateway's own
count decides alone while Redis is away. A minute's tokens are a bucket that refills steadily; a
request is admitted while anything is in it and pays for what it really used when it ends (the
bucket may go into debt, which later requests wait out), so nothing has to be reserved.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import Counter

from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import ResourceExhausted, Unavailable
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.gateway")

# KEYS: running (sorted set: request by the time it lapses), bucket (hash: level, at).
# ARGV: request, requests at a time, tokens per minute, lease in ms. Answers {verdict, wait in ms}.
_LEVEL = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local rate = tonumber(ARGV[3])
local bucket = redis.call('HMGET', KEYS[2], 'level', 'at')
local level = tonumber(bucket[1] or rate)
if bucket[2] then level = math.min(rate, level + (now - tonumber(bucket[2])) * rate / 60000) end
"""
_ADMIT = (
    _LEVEL
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local most = tonumber(ARGV[2])
if most > 0 and not redis.call('ZSCORE', KEYS[1], ARGV[1])
   and redis.call('ZCARD', KEYS[1]) >= most then return {'requests', 1000} end
if rate > 0 and level <= 0 then return {'tokens', math.ceil((1 - level) * 60000 / rate)} end
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {'ok', 0}
"""
)
# ARGV as above, but the fourth is tokens used. Safe to send twice: only the first one removes.
_SETTLE = (
    _LEVEL
    + """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 or rate == 0 then return 0 end
level = level - tonumber(ARGV[4])
redis.call('HSET', KEYS[2], 'level', tostring(level), 'at', now)
redis.call('PEXPIRE', KEYS[2], math.max(120000, math.ceil((rate - level) * 60000 / rate)))
return 1
"""
)


class Admission:
    """One request that was let in; `spend` what it used, then `close` it."""

    def __init__(self, quotas: Quotas, tenant: str) -> None:
        self.id = uuid.uuid4().hex
        self.tenant = tenant
        self.used = 0
        self._quotas = quotas
        self._open = True

    def spend(self, tokens: int) -> None:
        """Adds to what is paid for at the end."""
        self.used += tokens

    def close(self) -> None:
        """Idempotent, and never waits: whoever closes may be cancelled already."""
        if self._open:
            self._open = False
            self._quotas.settle(self)


class Quotas:
    """Limits of 0 are none; without any, nothing is counted and Redis is not asked."""

    def __init__(
        self, redis: Redis, *, concurrent: int, tokens_per_minute: int, lease_s: float
    ) -> None:
        self._concurrent = concurrent
        self._rate = tokens_per_minute
        self._lease_ms = int(lease_s * 1000)
        self._limited = bool(concurrent or tokens_per_minute)
        self._admit = redis.register_script(_ADMIT)
        self._settle = redis.register_script(_SETTLE)
        self._running: Counter[str] = Counter()
        self._buckets: dict[str, tuple[float, float]] = {}  # tenant → level, when
        self._settling: set[asyncio.Task[None]] = set()

    async def admit(self, tenant: str) -> Admission:
        """ResourceExhausted with a time to wait when the tenant has used up what it has."""
        admission = Admission(self, tenant)
        if not self._limited:
            return admission
        self._admit_here(tenant)
        self._running[tenant] += 1
        try:
            with redis_errors():
                verdict, wait_ms = await self._admit(
                    keys=_keys(tenant),
                    args=[admission.id, self._concurrent, self._rate, self._lease_ms],
                )
        except Unavailable as error:
            _log.warning("quotas are counted by this gateway alone", reason=str(error))
            return admission
        except BaseException:
            self._leave(tenant)
            raise
        if verdict != b"ok":
            self._leave(tenant)
            raise self._exhausted(tenant, verdict.decode(), int(wait_ms) / 1000)
        return admission

    async def check(self, tenant: str) -> None:
        """ResourceExhausted where `admit` would raise it now; takes nothing."""
        (await self.admit(tenant)).close()

    def settle(self, admission: Admission) -> None:
        """Books what a request used: here at once, in Redis in the background."""
        if not self._limited:
            return
        self._leave(admission.tenant)
        if self._rate:
            level = self._level(admission.tenant) - admission.used
            self._buckets[admission.tenant] = (level, time.monotonic())
        task = asyncio.create_task(self._settle_in_redis(admission))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def drain(self) -> None:
        """Waits for what is still being booked."""
        await asyncio.gather(*self._settling)

    async def _settle_in_redis(self, admission: Admission) -> None:
        try:
            with redis_errors():
                await self._settle(
                    keys=_keys(admission.tenant),
                    args=[admission.id, self._concurrent, self._rate, admission.used],
                )
        except Unavailable as error:
            _log.warning("a request's use was not booked", reason=str(error))

    def _leave(self, tenant: str) -> None:
        self._running[tenant] -= 1
        if self._running[tenant] <= 0:
            del self._running[tenant]

    def _admit_here(self, tenant: str) -> None:
        if self._concurrent and self._running[tenant] >= self._concurrent:
            raise self._exhausted(tenant, "requests", 1.0)
        level = self._level(tenant)
        if self._rate and level <= 0:
            raise self._exhausted(tenant, "tokens", (1 - level) * 60 / self._rate)

    def _level(self, tenant: str) -> float:
        now = time.monotonic()
        level, at = self._buckets.get(tenant, (float(self._rate), now))
        return min(float(self._rate), level + (now - at) * self._rate / 60)

    def _exhausted(self, tenant: str, what: str, wait_s: float) -> ResourceExhausted:
        limit = (
            f"{self._concurrent} requests at a time"
            if what == "requests"
            else f"{self._rate} tokens per minute"
        )
        return ResourceExhausted(
            f"Rate limit reached for tenant {tenant!r}: {limit}. "
            f"Try again in {math.ceil(wait_s)} s.",
            reason="RATE_LIMIT_EXCEEDED",
            retry_after_s=wait_s,
            metadata={"subject": f"tenant:{tenant}"},
        )


def _keys(tenant: str) -> list[str]:
    return [redis_keys.quota(tenant, "running"), redis_keys.quota(tenant, "tokens")]
