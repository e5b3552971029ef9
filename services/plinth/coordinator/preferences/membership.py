"""Which collections there are, and who made them."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import NotFound, ResourceExhausted
from plinth.v1 import owner_pb2

MAX_COLLECTIONS = 64


@dataclass(frozen=True)
class Maker:
    """Who made a collection, and when; empty and 0 where that is not known."""

    owner: owner_pb2.Owner
    created_unix_ms: int


class Membership:
    """One collection among the others. Raises Unavailable while Redis is gone."""

    def __init__(self, redis: Redis, collection: str) -> None:
        self.collection = collection
        self._redis = redis
        self._keys = redis_keys.PreferenceKeys(collection)

    async def claim(self, owner: owner_pb2.Owner) -> Maker:
        """Makes the collection, as `owner`'s, if there is none. ResourceExhausted: too many."""
        known = redis_keys.preference_collections()
        with redis_errors():
            if not await self._redis.sismember(known, self.collection):
                await self._check_number()
                made = str(time.time_ns() // 1_000_000)
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.hsetnx(self._keys.counters, "owner", owner.SerializeToString())
                    pipe.hsetnx(self._keys.counters, "created", made)
                    await pipe.execute()
                await self._redis.sadd(known, self.collection)
        return await self.maker()

    async def maker(self) -> Maker:
        with redis_errors():
            owner, created = await cast(
                Awaitable[list[Any]],
                self._redis.hmget(self._keys.counters, ["owner", "created"]),
            )
        return Maker(owner_pb2.Owner.FromString(owner or b""), int(created or 0))

    async def check_known(self) -> None:
        """NotFound where it never had a task, or was deleted."""
        with redis_errors():
            known = await self._redis.sismember(
                redis_keys.preference_collections(), self.collection
            )
        if not known:
            raise NotFound(
                f"there is no collection {self.collection!r}",
                reason="COLLECTION_NOT_FOUND",
                field="name",
            )

    async def list(self) -> None:
        """Makes the collection known. ResourceExhausted: there are too many."""
        known = redis_keys.preference_collections()
        with redis_errors():
            if await self._redis.sismember(known, self.collection):
                return
            await self._check_number()
            await self._redis.sadd(known, self.collection)

    async def _check_number(self) -> None:
        with redis_errors():
            if await self._redis.scard(redis_keys.preference_collections()) >= MAX_COLLECTIONS:
                raise ResourceExhausted(
                    f"there are {MAX_COLLECTIONS} collections, the limit; use one of them, or "
                    "delete one",
                    reason="TOO_MANY_COLLECTIONS",
                )


async def collections(redis: Redis) -> list[str]:
    """Names of the collections that ever held a task."""
    with redis_errors():
        names = await cast(
            Awaitable[set[bytes]], redis.smembers(redis_keys.preference_collections())
        )
    return sorted(name.decode() for name in names)
