"""One collection of preference tasks in Redis: how tasks come, are read, and go.

Every call may be sent twice without harm, as redis-py does when a connection breaks.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from plinth.coordinator.preferences import scripts
from plinth.coordinator.preferences.membership import Membership, collections
from plinth.coordinator.preferences.refusals import refuse
from plinth.coordinator.preferences.specs import spec_digest
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import AlreadyExists, ResourceExhausted
from plinth.v1 import preferences_pb2 as pb

MAX_TASKS = 200_000  # of one collection
MAX_BYTES = 256 << 20  # of all collections together: queues and the registry live in Redis too
READ = 500  # records per round trip

STATES: Final = {
    b"sampling": pb.PREFERENCE_TASK_STATE_SAMPLING,
    b"open": pb.PREFERENCE_TASK_STATE_OPEN,
    b"leased": pb.PREFERENCE_TASK_STATE_LEASED,
    b"done": pb.PREFERENCE_TASK_STATE_DONE,
    b"failed": pb.PREFERENCE_TASK_STATE_FAILED,
}
_FIELDS = ["record", "state", "judged", "error", "wanted"]


@dataclass(frozen=True)
class Counts:
    """Tasks of a collection, and its judgements."""

    total: int
    open: int
    leased: int
    judgements: int


class Collection(Membership):
    """The tasks of one collection. Raises Unavailable while Redis is gone."""

    def __init__(
        self,
        redis: Redis,
        collection: str,
        *,
        max_tasks: int = MAX_TASKS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(redis, collection)
        k = self._keys
        self._base = [k.tasks, k.open, k.leases, k.held, k.judgements, k.counters]
        self._prefix = k.task("x").removesuffix("x")
        self._max_tasks, self._max_bytes = max_tasks, max_bytes
        self._scripts: dict[str, AsyncScript] = {}

    async def create(self, task: rec.PreferenceTaskRecord) -> rec.PreferenceTaskRecord:
        """Adds it, or gives back the one that was made by the same call before. AlreadyExists:
        that id asks for something else; ResourceExhausted: the collection is full."""
        state = "sampling" if task.samples else "open"
        args = [task.task_id, spec_digest(task), task.SerializeToString(), task.wanted]
        args += [len(task.responses), state, self._max_tasks, self._max_bytes, task.tenant]
        await self.list()
        if not await self.has_room():
            args[-2] = 0  # what is there already is known nonetheless
        answer = await self.run(scripts.CREATE, args)
        if answer == b"full":
            raise self._full()
        if answer == b"differs":
            raise AlreadyExists(
                f"task {task.task_id} is there already and asks for something else",
                reason="TASK_EXISTS",
                field="task_id",
            )
        return await self.get(task.task_id)

    async def check_room(self) -> None:
        """ResourceExhausted where there is none."""
        if not await self.has_room():
            raise self._full()

    async def has_room(self) -> bool:
        """Whether all collections together hold less than they may (nearly: others may add
        meanwhile)."""
        names = await collections(self._redis)
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(redis_keys.PreferenceKeys(name).counters, "bytes")
                return sum(int(held or 0) for held in await pipe.execute()) < self._max_bytes

    def _full(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"a collection holds {self._max_tasks:,} tasks and all together "
            f"{self._max_bytes >> 20:,} MiB at most, and that is reached; publish what was judged "
            "and delete its collection, or delete the tasks that nobody has judged",
            reason="COLLECTION_FULL",
        )

    async def delete(self) -> int:
        """Forgets the collection; how many tasks went. NotFound. May be done again after a
        failure in the middle."""
        await self.check_known()
        gone = 0
        with redis_errors():
            while ids := cast(list[bytes], await self._redis.zrange(self._keys.tasks, 0, READ - 1)):
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.delete(*(self._keys.task(raw.decode()) for raw in ids))
                    for index in (self._keys.tasks, self._keys.open, self._keys.leases):
                        pipe.zrem(index, *ids)
                    await pipe.execute()
                gone += len(ids)
            await self._redis.delete(*self._base, self._keys.snapshots)
            await self._redis.srem(redis_keys.preference_collections(), self.collection)
        return gone

    async def ensure(self, task: rec.PreferenceTaskRecord) -> None:
        """Adds it unless its id is there, whatever that asks for."""
        with suppress(AlreadyExists):
            await self.create(task)

    async def get(self, task_id: str) -> rec.PreferenceTaskRecord:
        """NotFound when there is none."""
        with redis_errors():
            values = await cast(
                Awaitable[list[Any]], self._redis.hmget(self._keys.task(task_id), _FIELDS)
            )
        if values[0] is None:
            raise refuse(b"unknown", self.collection, task_id)
        return _task(values)

    async def newest(self, limit: int) -> list[rec.PreferenceTaskRecord]:
        """Newest first."""
        with redis_errors():
            ids = cast(
                list[bytes], await self._redis.zrange(self._keys.tasks, 0, limit - 1, desc=True)
            )
        return await self._many([raw.decode() for raw in ids])

    async def behind(
        self, position: int, count: int
    ) -> tuple[list[tuple[int, rec.PreferenceTaskRecord]], bool]:
        """((position, task) of the newest `count` that are older than the one at `position`; 0:
        of all. Whether there may be more). A task's position is its number."""
        newest: Any = f"({position}" if position else "+inf"
        with redis_errors():
            rows = cast(
                list[tuple[bytes, float]],
                await self._redis.zrange(
                    self._keys.tasks,
                    newest,
                    "-inf",
                    desc=True,
                    byscore=True,
                    offset=0,
                    num=count,
                    withscores=True,
                ),
            )
        numbers = {raw.decode(): int(score) for raw, score in rows}
        tasks = await self._many(list(numbers))  # without those that were deleted meanwhile
        return [(numbers[task.task_id], task) for task in tasks], len(rows) == count

    async def counts(self) -> Counts:
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zcard(self._keys.tasks)
                pipe.zcard(self._keys.open)
                pipe.zcard(self._keys.leases)
                pipe.llen(self._keys.judgements)
                return Counts(*await pipe.execute())

    async def fill(self, task: rec.PreferenceTaskRecord) -> None:
        """The task with its sampled responses: it can be judged now. One that was closed
        meanwhile stays away."""
        args = [task.task_id, task.SerializeToString(), len(task.responses)]
        await self.run(scripts.FILL, args)

    async def fail(self, task_id: str, reason: str) -> None:
        """Its responses could not be made."""
        await self.run(scripts.FAIL, [task_id, reason[:1000]])

    async def close(self, task_id: str) -> None:
        """No more leases. NotFound."""
        if await self.run(scripts.CLOSE, [task_id]) == b"unknown":
            raise refuse(b"unknown", self.collection, task_id)

    async def remove(self, task_id: str) -> None:
        """NotFound; FailedPrecondition where it is judged or held."""
        if (answer := await self.run(scripts.REMOVE, [task_id])) != b"ok":
            raise refuse(answer, self.collection, task_id)

    async def tasks(self, ids: list[str]) -> dict[str, rec.PreferenceTaskRecord]:
        """Those of `ids` that there are."""
        found: dict[str, rec.PreferenceTaskRecord] = {}
        for begin in range(0, len(ids), READ):
            for task in await self._many(ids[begin : begin + READ]):
                found[task.task_id] = task
        return found

    async def _many(self, ids: list[str]) -> list[rec.PreferenceTaskRecord]:
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for one in ids:
                    pipe.hmget(self._keys.task(one), _FIELDS)
                rows = await pipe.execute()
        return [_task(values) for values in rows if values[0] is not None]

    async def run(self, body: str, args: list[Any], *more: str) -> Any:
        """One of the scripts, with the collection's keys."""
        if body not in self._scripts:
            self._scripts[body] = self._redis.register_script(scripts.PRELUDE + body)
        with redis_errors():
            return await self._scripts[body](keys=[*self._base, *more], args=[self._prefix, *args])


def _task(values: list[Any]) -> rec.PreferenceTaskRecord:
    record, state, judged, error, wanted = values
    task = rec.PreferenceTaskRecord.FromString(record)
    task.state, task.judged = STATES[state], int(judged)
    task.wanted = int(wanted)
    task.error = (error or b"").decode(errors="replace")
    return task
