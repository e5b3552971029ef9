"""Leases and judgements of one collection, moved by the scripts alone.

A judgement is on the disk before its call returns (Redis's AOF), and never changes; the first n of
them are a snapshot that anybody can read again.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, cast

from plinth.coordinator.preferences import scripts
from plinth.coordinator.preferences.collection import READ, Collection
from plinth.coordinator.preferences.refusals import refuse
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.enums import word
from plinth.shared.connection import redis_errors
from plinth.shared.errors import AlreadyExists, NotFound
from plinth.v1 import preferences_pb2 as pb

MAX_HELD = 16  # by one annotator at a time


@dataclass(frozen=True)
class Grant:
    """A lease: the task, and its response ids in the order in which to show them."""

    task: rec.PreferenceTaskRecord
    annotator: str
    fence: int
    shown: tuple[str, ...]
    expires_unix_ms: int


class PreferenceRecords(Collection):
    """A collection with its annotators. Raises Unavailable while Redis is gone."""

    # -- leases ----------------------------------------------------------------------------

    async def lease(
        self,
        annotator: str,
        *,
        lease_s: float,
        task_id: str = "",
        nonce: str = "",
        tenant: str = "",
    ) -> Grant | None:
        """The oldest task that `annotator` has neither judged nor skipped, or a certain one.
        None: there is none. What keeps a certain one from being leased is raised. tenant: whose
        tasks alone; empty: everybody's."""
        chance = secrets.SystemRandom()
        shuffle = [chance.randrange(1 << 53) for _ in range(8)]
        behind = b"0"
        while True:
            args = [annotator, nonce, int(lease_s * 1000), behind, task_id, MAX_HELD]
            args += [*shuffle, tenant]
            answer = await self.run(scripts.LEASE, args, self._keys.nonce(annotator))
            if answer[0] == b"ok":
                return self._grant(annotator, answer)
            if answer[0] == b"none":
                return None
            if answer[0] != b"more":
                raise refuse(answer[0], self.collection, task_id, annotator)
            behind = answer[1]

    def _grant(self, annotator: str, answer: list[Any]) -> Grant:
        _, _, fence, order, until_ms, record = answer
        task = rec.PreferenceTaskRecord.FromString(record)
        ids = [response.response_id for response in task.responses]
        shown = tuple(ids[int(place) - 1] for place in order.split(b","))
        return Grant(task, annotator, int(fence), shown, int(until_ms))

    async def renew(self, task_id: str, annotator: str, fence: int, *, lease_s: float) -> int:
        """Until when (Unix ms) the lease runs now."""
        args = [task_id, fence, annotator, int(lease_s * 1000)]
        answer = await self.run(scripts.RENEW, args)
        self._check(answer, task_id, annotator, fence)
        return int(answer[1])

    async def release(self, task_id: str, annotator: str, fence: int, *, skip: bool) -> None:
        """Gives the task back; `skip`: never to this annotator again."""
        answer = await self.run(scripts.RELEASE, [task_id, fence, annotator, int(skip)])
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
        ids = [
            response.response_id
            for response in rec.PreferenceTaskRecord.FromString(record).responses
        ]
        return tuple(ids[int(place) - 1] for place in order.split(b","))

    # -- judgements ------------------------------------------------------------------------

    async def submit(
        self, judgement: rec.JudgementRecord, fence: int
    ) -> tuple[rec.JudgementRecord, int]:
        """A person's judgement under a lease: (as it is kept, its number)."""
        args = [judgement.task_id, fence, judgement.annotator, judgement.SerializeToString()]
        answer = await self.run(scripts.SUBMIT, [*args, int(await self.has_room())])
        if answer[0] == b"known":
            return await self._same(judgement, int(answer[1]))
        self._check(answer, judgement.task_id, judgement.annotator, fence)
        return judgement, int(answer[1])

    async def add(self, judgement: rec.JudgementRecord) -> tuple[rec.JudgementRecord, int]:
        """A judgement that needs no lease: (as it is kept, its number)."""
        args = [judgement.task_id, judge_field(judgement), judgement.SerializeToString()]
        answer = await self.run(scripts.ADD, [*args, int(await self.has_room())])
        if answer[0] == b"known":
            return await self._same(judgement, int(answer[1]))
        self._check(answer, judgement.task_id, judgement.annotator)
        return judgement, int(answer[1])

    async def _same(
        self, judgement: rec.JudgementRecord, number: int
    ) -> tuple[rec.JudgementRecord, int]:
        """The judgement that is there, if `judgement` says the same."""
        there = (await self._slice(number - 1, number))[0]
        told, kept = ((j.ranking, j.all_bad, j.reason) for j in (judgement, there))
        if told != kept:
            raise AlreadyExists(
                f"{judgement.annotator} has judged task {judgement.task_id} already, otherwise",
                reason="TASK_JUDGED",
            )
        return there, number

    async def judged_by(self, task_id: str, judgement: rec.JudgementRecord) -> bool:
        """Whether the judge that `judgement` names has judged this task."""
        return await self.said_by(task_id, judgement) is not None

    async def said_by(
        self, task_id: str, judgement: rec.JudgementRecord
    ) -> rec.JudgementRecord | None:
        """What the judge that `judgement` names has said of this task."""
        with redis_errors():
            found = await cast(
                Awaitable[bytes | None],
                self._redis.hget(self._keys.task(task_id), judge_field(judgement)),
            )
        if found is None or found == b"skip":
            return None
        number = int(found.rpartition(b":")[2])
        return (await self._slice(number - 1, number))[0]

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

    async def judgements(self, up_to: int) -> AsyncIterator[list[rec.JudgementRecord]]:
        """The first `up_to` of them, in parts."""
        for begin in range(0, up_to, READ):
            yield await self._slice(begin, min(begin + READ, up_to))

    async def judgement(self, task_id: str, number: int) -> rec.JudgementRecord:
        """The one with that number. NotFound where it is not of this task."""
        found = await self._slice(number - 1, number) if 0 < number < 1 << 53 else []
        if not found or found[0].task_id != task_id:
            raise NotFound(
                f"task {task_id} of collection {self.collection} has no judgement {number}",
                reason="JUDGEMENT_NOT_FOUND",
                field="name",
            )
        return found[0]

    async def judgements_behind(
        self, number: int, count: int
    ) -> tuple[list[tuple[int, rec.JudgementRecord]], bool]:
        """((number, judgement) of the first `count` after that number; 0: of all. Whether there
        may be more)."""
        found = await self._slice(number, number + count)
        return list(enumerate(found, number + 1)), len(found) == count

    async def judgements_of(self, task_id: str) -> list[int]:
        """The numbers of a task's judgements, in order. NotFound."""
        with redis_errors():
            fields = await cast(
                Awaitable[dict[bytes, bytes]], self._redis.hgetall(self._keys.task(task_id))
            )
        if not fields:
            raise refuse(b"unknown", self.collection, task_id)
        said = [value for name, value in fields.items() if name.startswith(b"by:")]
        return sorted(int(value.rpartition(b":")[2]) for value in said if value != b"skip")

    async def numbered(self, numbers: list[int]) -> list[tuple[int, rec.JudgementRecord]]:
        """(number, judgement) of these."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for number in numbers:
                    pipe.lindex(self._keys.judgements, number - 1)
                raw = await pipe.execute()
        records = [rec.JudgementRecord.FromString(one) for one in raw]
        return list(zip(numbers, records, strict=True))

    async def _slice(self, begin: int, end: int) -> list[rec.JudgementRecord]:
        with redis_errors():
            raw = await cast(
                Awaitable[list[bytes]],
                self._redis.lrange(self._keys.judgements, begin, end - 1),
            )
        return [rec.JudgementRecord.FromString(one) for one in raw]

    def _check(self, answer: list[Any], task_id: str, annotator: str, fence: int = 0) -> None:
        if answer[0] == b"no room":
            raise self._full()
        if answer[0] != b"ok":
            raise refuse(answer[0], self.collection, task_id, annotator, fence)


def judge_field(judgement: rec.JudgementRecord) -> str:
    """Where a task remembers its judge."""
    return f"by:{word(pb.JudgementSource, judgement.source)}:{judgement.annotator}"
