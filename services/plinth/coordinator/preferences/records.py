"""Preference tasks and judgements in Redis: one collection, moved by the scripts alone.

Every call may be sent twice without harm, as redis-py does when a connection breaks. A judgement
is on the disk before its call returns (Redis's AOF), and never changes; the first n of them are
a snapshot that anybody can read again.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from plinth.coordinator.preferences import scripts
from plinth.coordinator.preferences.refusals import refuse
from plinth.coordinator.preferences.specs import spec_digest
from plinth.shared import keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import AlreadyExists, NotFound, ResourceExhausted
from plinth.v1 import preferences_pb2 as pb

MAX_COLLECTIONS = 64
MAX_TASKS = 200_000  # of one collection
MAX_BYTES = 256 << 20  # of all collections together: queues and the registry live in Redis too
MAX_HELD = 16  # by one annotator at a time
_READ = 500  # records per round trip

STATES: Final = {
    b"sampling": pb.PREFERENCE_TASK_STATE_SAMPLING,
    b"open": pb.PREFERENCE_TASK_STATE_OPEN,
    b"leased": pb.PREFERENCE_TASK_STATE_LEASED,
    b"done": pb.PREFERENCE_TASK_STATE_DONE,
    b"failed": pb.PREFERENCE_TASK_STATE_FAILED,
}
_FIELDS = ["record", "state", "judged", "error", "wanted"]


@dataclass(frozen=True)
class Grant:
    """A lease: the task, and its response ids in the order in which to show them."""

    task: pb.PreferenceTask
    annotator: str
    fence: int
    shown: tuple[str, ...]
    expires_unix_ms: int


@dataclass(frozen=True)
class Counts:
    """Tasks of a collection, and its judgements."""

    total: int
    open: int
    leased: int
    judgements: int


class PreferenceRecords:
    """One collection. Raises Unavailable while Redis is gone."""

    def __init__(
        self,
        redis: Redis,
        collection: str,
        *,
        max_tasks: int = MAX_TASKS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.collection = collection
        self._redis = redis
        self._keys = keys.PreferenceKeys(collection)
        k = self._keys
        self._base = [k.tasks, k.open, k.leases, k.held, k.judgements, k.counters]
        self._prefix = k.task("x").removesuffix("x")
        self._max_tasks, self._max_bytes = max_tasks, max_bytes
        self._scripts: dict[str, AsyncScript] = {}

    # -- tasks -----------------------------------------------------------------------------

    async def create(self, task: pb.PreferenceTask) -> pb.PreferenceTask:
        """Adds it, or gives back the one that was made by the same call before. AlreadyExists:
        that id asks for something else; ResourceExhausted: the collection is full."""
        state = "sampling" if task.samples else "open"
        args = [task.task_id, spec_digest(task), task.SerializeToString(), task.wanted]
        args += [len(task.responses), state, self._max_tasks, self._max_bytes]
        await self._list()
        await self._check_room()
        answer = await self._run(scripts.CREATE, args)
        if answer == b"full":
            raise self._full()
        if answer == b"differs":
            raise AlreadyExists(
                f"task {task.task_id} is there already and asks for something else",
                reason="TASK_EXISTS",
                field="task_id",
            )
        return await self.get(task.task_id)

    async def _check_room(self) -> None:
        """ResourceExhausted when all collections together hold as much as they may (nearly: others
        may add meanwhile)."""
        names = await collections(self._redis)
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(keys.PreferenceKeys(name).counters, "bytes")
                if sum(int(held or 0) for held in await pipe.execute()) >= self._max_bytes:
                    raise self._full()

    def _full(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"a collection holds {self._max_tasks:,} tasks and all together "
            f"{self._max_bytes >> 20:,} MiB at most, and that is reached; publish what was judged "
            "and delete its collection, or close what nobody has judged",
            reason="COLLECTION_FULL",
        )

    async def delete(self) -> int:
        """Forgets the collection; how many tasks went. NotFound. May be done again after a
        failure in the middle."""
        known = keys.preference_collections()
        with redis_errors():
            if not await self._redis.sismember(known, self.collection):
                raise NotFound(
                    f"there is no collection {self.collection!r}",
                    reason="COLLECTION_NOT_FOUND",
                    field="collection",
                )
            gone = 0
            while ids := cast(
                list[bytes], await self._redis.zrange(self._keys.tasks, 0, _READ - 1)
            ):
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.delete(*(self._keys.task(raw.decode()) for raw in ids))
                    for index in (self._keys.tasks, self._keys.open, self._keys.leases):
                        pipe.zrem(index, *ids)
                    await pipe.execute()
                gone += len(ids)
            await self._redis.delete(*self._base, self._keys.snapshots)
            await self._redis.srem(known, self.collection)
        return gone

    async def ensure(self, task: pb.PreferenceTask) -> None:
        """Adds it unless its id is there, whatever that asks for."""
        with suppress(AlreadyExists):
            await self.create(task)

    async def _list(self) -> None:
        """Makes the collection known. ResourceExhausted: there are too many."""
        known = keys.preference_collections()
        with redis_errors():
            if await self._redis.sismember(known, self.collection):
                return
            if await self._redis.scard(known) >= MAX_COLLECTIONS:
                raise ResourceExhausted(
                    f"there are {MAX_COLLECTIONS} collections, the limit; use one of them",
                    reason="TOO_MANY_COLLECTIONS",
                )
            await self._redis.sadd(known, self.collection)

    async def get(self, task_id: str) -> pb.PreferenceTask:
        """NotFound when there is none."""
        with redis_errors():
            values = await cast(
                Awaitable[list[Any]], self._redis.hmget(self._keys.task(task_id), _FIELDS)
            )
        if values[0] is None:
            raise refuse(b"unknown", self.collection, task_id)
        return _task(values)

    async def newest(self, limit: int) -> list[pb.PreferenceTask]:
        """Newest first."""
        with redis_errors():
            ids = cast(
                list[bytes], await self._redis.zrange(self._keys.tasks, 0, limit - 1, desc=True)
            )
        return await self._many([raw.decode() for raw in ids])

    async def counts(self) -> Counts:
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zcard(self._keys.tasks)
                pipe.zcard(self._keys.open)
                pipe.zcard(self._keys.leases)
                pipe.llen(self._keys.judgements)
                return Counts(*await pipe.execute())

    async def fill(self, task: pb.PreferenceTask) -> None:
        """The task with its sampled responses: it can be judged now. One that was closed
        meanwhile stays away."""
        args = [task.task_id, task.SerializeToString(), len(task.responses)]
        await self._run(scripts.FILL, args)

    async def fail(self, task_id: str, reason: str) -> None:
        """Its responses could not be made."""
        await self._run(scripts.FAIL, [task_id, reason[:1000]])

    async def close(self, task_id: str) -> None:
        """No more leases; removed when nothing was judged. NotFound."""
        if await self._run(scripts.CLOSE, [task_id]) == b"unknown":
            raise refuse(b"unknown", self.collection, task_id)

    # -- leases ----------------------------------------------------------------------------

    async def lease(
        self, annotator: str, *, lease_s: float, task_id: str = "", nonce: str = ""
    ) -> Grant | None:
        """The oldest task that `annotator` has neither judged nor skipped, or a certain one.
        None: there is none. What keeps a certain one from being leased is raised."""
        chance = secrets.SystemRandom()
        shuffle = [chance.randrange(1 << 53) for _ in range(8)]
        behind = b"0"
        while True:
            args = [annotator, nonce, int(lease_s * 1000), behind, task_id, MAX_HELD, *shuffle]
            answer = await self._run(scripts.LEASE, args, self._keys.nonce(annotator))
            if answer[0] == b"ok":
                return self._grant(annotator, answer)
            if answer[0] == b"none":
                return None
            if answer[0] != b"more":
                raise refuse(answer[0], self.collection, task_id, annotator)
            behind = answer[1]

    def _grant(self, annotator: str, answer: list[Any]) -> Grant:
        _, _, fence, order, until_ms, record = answer
        task = pb.PreferenceTask.FromString(record)
        ids = [response.response_id for response in task.responses]
        shown = tuple(ids[int(place) - 1] for place in order.split(b","))
        return Grant(task, annotator, int(fence), shown, int(until_ms))

    async def renew(self, task_id: str, annotator: str, fence: int, *, lease_s: float) -> int:
        """Until when (Unix ms) the lease runs now."""
        args = [task_id, fence, annotator, int(lease_s * 1000)]
        answer = await self._run(scripts.RENEW, args)
        self._check(answer, task_id, annotator, fence)
        return int(answer[1])

    async def release(self, task_id: str, annotator: str, fence: int, *, skip: bool) -> None:
        """Gives the task back; `skip`: never to this annotator again."""
        answer = await self._run(scripts.RELEASE, [task_id, fence, annotator, int(skip)])
        self._check(answer, task_id, annotator, fence)

    async def shown(self, task_id: str, fence: int) -> tuple[str, ...]:
        """The order of presentation under this lease; empty when it is not the current one (the
        next script says why)."""
        fields = ["record", "fence", "order"]
        with redis_errors():
            record, held, order = await cast(
                Awaitable[list[Any]], self._redis.hmget(self._keys.task(task_id), fields)
            )
        if record is None or order is None or int(held) != fence:
            return ()
        ids = [response.response_id for response in pb.PreferenceTask.FromString(record).responses]
        return tuple(ids[int(place) - 1] for place in order.split(b","))

    # -- judgements ------------------------------------------------------------------------

    async def submit(self, judgement: pb.Judgement, fence: int) -> tuple[pb.Judgement, int]:
        """A person's judgement under a lease: (as it is kept, its number)."""
        args = [judgement.task_id, fence, judgement.annotator, judgement.SerializeToString()]
        answer = await self._run(scripts.SUBMIT, args)
        if answer[0] == b"known":
            return await self._same(judgement, int(answer[1]))
        self._check(answer, judgement.task_id, judgement.annotator, fence)
        return judgement, int(answer[1])

    async def add(self, judgement: pb.Judgement) -> tuple[pb.Judgement, int]:
        """A judgement that needs no lease: (as it is kept, its number)."""
        args = [judgement.task_id, judge_field(judgement), judgement.SerializeToString()]
        answer = await self._run(scripts.ADD, args)
        if answer[0] == b"known":
            return await self._same(judgement, int(answer[1]))
        if answer[0] != b"ok":
            raise refuse(answer[0], self.collection, judgement.task_id, judgement.annotator)
        return judgement, int(answer[1])

    async def _same(self, judgement: pb.Judgement, number: int) -> tuple[pb.Judgement, int]:
        """The judgement that is there, if `judgement` says the same."""
        there = (await self._slice(number - 1, number))[0]
        told, kept = ((j.ranking, j.all_bad, j.reason) for j in (judgement, there))
        if told != kept:
            raise AlreadyExists(
                f"{judgement.annotator} has judged task {judgement.task_id} already, otherwise",
                reason="TASK_JUDGED",
            )
        return there, number

    async def judged_by(self, task_id: str, judgement: pb.Judgement) -> bool:
        """Whether the judge that `judgement` names has judged this task."""
        with redis_errors():
            found = await self._redis.hexists(self._keys.task(task_id), judge_field(judgement))
        return bool(found)

    async def revision(self) -> int:
        """The number of judgements so far: names a snapshot."""
        with redis_errors():
            return await self._redis.llen(self._keys.judgements)

    async def pinned_revision(self, job_id: str) -> int:
        """The revision that this job saw first: the same whenever it is taken up again."""
        revision = await self.revision()
        with redis_errors():
            await self._redis.hsetnx(self._keys.snapshots, job_id, str(revision))
            pinned = await cast(Awaitable[bytes], self._redis.hget(self._keys.snapshots, job_id))
        return int(pinned)

    async def judgements(self, up_to: int) -> AsyncIterator[list[pb.Judgement]]:
        """The first `up_to` of them, in parts."""
        for begin in range(0, up_to, _READ):
            yield await self._slice(begin, min(begin + _READ, up_to))

    async def _slice(self, begin: int, end: int) -> list[pb.Judgement]:
        with redis_errors():
            raw = await cast(
                Awaitable[list[bytes]],
                self._redis.lrange(self._keys.judgements, begin, end - 1),
            )
        return [pb.Judgement.FromString(one) for one in raw]

    async def tasks(self, ids: list[str]) -> dict[str, pb.PreferenceTask]:
        """Those of `ids` that there are."""
        found: dict[str, pb.PreferenceTask] = {}
        for begin in range(0, len(ids), _READ):
            for task in await self._many(ids[begin : begin + _READ]):
                found[task.task_id] = task
        return found

    async def _many(self, ids: list[str]) -> list[pb.PreferenceTask]:
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for one in ids:
                    pipe.hmget(self._keys.task(one), _FIELDS)
                rows = await pipe.execute()
        return [_task(values) for values in rows if values[0] is not None]

    # -- inside ----------------------------------------------------------------------------

    def _check(self, answer: list[Any], task_id: str, annotator: str, fence: int) -> None:
        if answer[0] != b"ok":
            raise refuse(answer[0], self.collection, task_id, annotator, fence)

    async def _run(self, body: str, args: list[Any], *more: str) -> Any:
        if body not in self._scripts:
            self._scripts[body] = self._redis.register_script(scripts.PRELUDE + body)
        with redis_errors():
            return await self._scripts[body](keys=[*self._base, *more], args=[self._prefix, *args])


def judge_field(judgement: pb.Judgement) -> str:
    """Where a task remembers its judge."""
    source = pb.JudgementSource.Name(judgement.source).removeprefix("JUDGEMENT_SOURCE_").lower()
    return f"by:{source}:{judgement.annotator}"


async def collections(redis: Redis) -> list[str]:
    """Names of the collections that ever held a task."""
    with redis_errors():
        names = await cast(Awaitable[set[bytes]], redis.smembers(keys.preference_collections()))
    return sorted(name.decode() for name in names)


def _task(values: list[Any]) -> pb.PreferenceTask:
    record, state, judged, error, wanted = values
    task = pb.PreferenceTask.FromString(record)
    task.state, task.judged = STATES[state], int(judged)
    task.wanted = int(wanted)
    task.error = (error or b"").decode(errors="replace")
    return task
