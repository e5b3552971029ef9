"""The replica registry: who serves what, where, and how busy they are.

A replica announces itself every couple of seconds; its entry lapses `ttl_s` after the last word
of it. When Redis is gone, readers keep the last answer they had (and find out by calling who of
them is still there): a token never waits for Redis.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import DataLoss, Unavailable

# Stages whose replicas announce themselves, in the order in which they are shown.
STAGES = ("tokenizer", "trainer", "reward", "coordinator", "reconciler", "inference")

# KEYS: index, hash. ARGV: id, ttl in ms, then field, value, …
_ANNOUNCE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""


@dataclass(frozen=True)
class Replica:
    """One announced replica. `fields` are as announced, all strings."""

    stage: str
    id: str
    address: str
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def bindings(self) -> list[dict[str, Any]]:
        """Models held: [{model, artifact, weights_digest, context_length}], empty if none."""
        text = self.fields.get("bindings")
        if not text:
            return []
        try:
            bindings = json.loads(text)
        except ValueError as error:
            raise DataLoss(
                f"replica {self.id} of {self.stage} announces bindings that are no JSON"
            ) from error
        if not isinstance(bindings, list):
            raise DataLoss(f"replica {self.id} of {self.stage} announces bindings that are no list")
        return bindings

    @property
    def load(self) -> int:
        """Requests running and waiting there, as last announced."""
        return sum(
            int(value) for key in ("running", "waiting") if (value := self.fields.get(key, "0"))
        )


class Registry:
    """Announces and finds replicas. One instance per process; safe to share between tasks."""

    def __init__(self, redis: Redis, *, ttl_s: float = 6) -> None:
        self._redis = redis
        self.ttl_s = ttl_s
        self._ttl_ms = int(ttl_s * 1000)
        self._announce = redis.register_script(_ANNOUNCE)
        self._last: dict[str, list[Replica]] = {}

    async def announce(self, stage: str, id: str, address: str, fields: Mapping[str, str]) -> None:
        """Makes the replica known for `ttl_s` seconds. Unavailable when Redis is gone."""
        pairs: list[str] = ["address", address]
        for key, value in fields.items():
            pairs += [key, value]
        with redis_errors():
            await self._announce(
                keys=[redis_keys.replicas(stage), redis_keys.replica(stage, id)],
                args=[id, self._ttl_ms, *pairs],
            )

    async def withdraw(self, stage: str, id: str) -> None:
        """Takes the replica off the list at once (it drains)."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zrem(redis_keys.replicas(stage), id)
                pipe.delete(redis_keys.replica(stage, id))
                await pipe.execute()

    async def replicas(self, stage: str) -> list[Replica]:
        """Live replicas by id; when Redis is gone the last answer, or Unavailable without one."""
        try:
            found = await self._read(stage)
        except Unavailable:
            if stage not in self._last:
                raise
            return list(self._last[stage])
        self._last[stage] = found
        return list(found)

    async def _read(self, stage: str) -> list[Replica]:
        with redis_errors():
            members: list[bytes] = await self._redis.zrange(redis_keys.replicas(stage), 0, -1)  # type: ignore[assignment]  # (scores are not asked for)
            ids = [raw.decode() for raw in members]
            if not ids:
                return []
            async with self._redis.pipeline(transaction=False) as pipe:
                for replica_id in ids:
                    pipe.hgetall(redis_keys.replica(stage, replica_id))
                answers = await pipe.execute()
        replicas = []
        for replica_id, raw in zip(ids, answers, strict=True):
            fields = {key.decode(): value.decode() for key, value in raw.items()}
            # A hash that lapsed is gone; its id leaves the index at the next announcement.
            if address := fields.pop("address", None):
                replicas.append(Replica(stage, replica_id, address, fields))
        return sorted(replicas, key=lambda replica: replica.id)
