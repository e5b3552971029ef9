"""Runs in Redis: one hash each, changed only by compare-and-set under the leader's fence.

    record    the message `RunRecord`, its revision within
    revision  the same number, for the scripts
    wanted    "run", "pause" or "cancel": set by anybody, obeyed by the leader
    ended     "1" when nothing will change any more

Every change appends the run's id to one bounded stream, which each coordinator follows once
(`change_feed.py`) for all its watchers. What they are told is in the run's log, so that one who was
away misses no state: an entry for each state of the run and its steps, by its newest revision,
which is the entry's id. A save that changes no state (progress) takes the place of the last entry.
The log goes some time after the run's end; who comes later is told how it ended.
"""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from plinth.coordinator import run_scripts as scripts
from plinth.coordinator.leader import LEASE, Leadership
from plinth.coordinator.machine import ENDED, Wanted
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.api.listing import Damaged
from plinth.shared.connection import redis_errors
from plinth.shared.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
)
from plinth.shared.identity import SYSTEM, Principal
from plinth.shared.time_index import TimeIndex

MAX_ACTIVE = 128
MAX_KEPT = 10_000
_EVENTS = 10_000
_LAST = (1 << 64) - 1  # the second half of a stream id
_LOGGED = 1000  # states of one run; only somebody who pauses it again and again reaches that
_LOG_TTL_S = 86_400  # after the run's end


class RunRecords:
    """The runs of this installation. Raises Unavailable while Redis is gone."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._number = redis.register_script(scripts.NUMBER)
        self._submit = redis.register_script(scripts.SUBMIT)
        self._want = redis.register_script(scripts.WANT)
        self._save = redis.register_script(scripts.SAVE)
        self._delete = redis.register_script(scripts.DELETE)
        self._index = TimeIndex(redis, redis_keys.runs())

    async def submit(self, run: rec.RunRecord) -> rec.RunRecord:
        """Adds it; the run that has its id already, if any, stands and is given back."""
        run.revision, run.changed_unix_ms = 1, run.submitted_unix_ms
        with redis_errors():
            run.number = await self._number(keys=[redis_keys.run_number()])
            record = await self._submit(
                keys=[
                    redis_keys.run(run.run_id),
                    redis_keys.runs(),
                    redis_keys.active_runs(),
                    redis_keys.run_events(),
                ],
                args=[
                    run.run_id,
                    run.SerializeToString(),
                    run.submitted_unix_ms,
                    MAX_ACTIVE,
                    MAX_KEPT,
                    _EVENTS,
                    redis_keys.run("x").removesuffix("x"),
                ],
            )
        if not record:
            raise ResourceExhausted(
                f"{MAX_ACTIVE} runs have not ended yet; wait for one or cancel one",
                retry_after_s=30,
            )
        return rec.RunRecord.FromString(record)

    async def get(self, run_id: str) -> rec.RunRecord:
        """NotFound when there is none."""
        return (await self.load(run_id))[0]

    async def find(self, run_id: str) -> rec.RunRecord | None:
        """None when there is none."""
        with redis_errors():
            record: Any = await self._redis.hget(redis_keys.run(run_id), "record")
        return None if record is None else _run(run_id, record)

    async def load(self, run_id: str) -> tuple[rec.RunRecord, Wanted]:
        """The run and what is wanted of it."""
        with redis_errors():
            values: Any = await self._redis.hmget(redis_keys.run(run_id), ["record", "wanted"])
        record, wanted = values
        if record is None or wanted is None:
            raise _unknown(run_id)
        return _run(run_id, record), Wanted(wanted.decode())

    async def after(self, run_id: str, revision: int) -> list[rec.RunRecord]:
        """What the run became after that revision, each of its states in order; with one that it
        has not reached (it was put back from a backup), the run as it is. NotFound."""
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(redis_keys.run(run_id), "record")
                pipe.xrange(redis_keys.run_log(run_id), min=f"({revision}-{_LAST}")
                record, entries = await pipe.execute()
        if record is None:
            raise _unknown(run_id)
        now = _run(run_id, record)
        if revision > now.revision:
            return [now]
        runs = [rec.RunRecord.FromString(fields[b"run"]) for _, fields in entries]
        for run in runs:
            run.pipeline_yaml = now.pipeline_yaml
        # A version that kept no log may have written since.
        if (runs[-1].revision if runs else revision) < now.revision:
            runs.append(now)
        return runs

    async def newest(
        self, position: str = "", count: int = 1
    ) -> list[tuple[str, rec.RunRecord | Damaged | None]]:
        """(position, run) of at most `count` behind a position, newest first; None for one that
        was deleted meanwhile."""
        entries = await self._index.newest(position, count)
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for _, run_id in entries:
                    pipe.hget(redis_keys.run(run_id), "record")
                records = await pipe.execute()
        return [
            (at, _told(run_id, record))
            for (at, run_id), record in zip(entries, records, strict=True)
        ]

    async def active(self) -> list[str]:
        """Ids of the runs that have not ended."""
        with redis_errors():
            ids: Any = await self._redis.smembers(redis_keys.active_runs())
        return sorted(raw.decode() for raw in ids)

    async def want(self, run_id: str, wanted: Wanted) -> None:
        """Asks the leader. FailedPrecondition when the run has ended or is being cancelled;
        cancelling what has ended is no error, so that it can be asked twice."""
        with redis_errors():
            answer = await self._want(
                keys=[redis_keys.run(run_id), redis_keys.run_events()],
                args=[run_id, wanted.value, _EVENTS],
            )
        if answer == 0:
            raise _unknown(run_id)
        if answer == -1 and wanted is not Wanted.CANCEL:
            raise FailedPrecondition(
                f"run {run_id} has ended; submit a new one (finished steps are reused)",
                reason="RUN_ENDED",
            )
        if answer == -2:
            raise FailedPrecondition(f"run {run_id} is being cancelled", reason="RUN_CANCELLED")

    async def delete(self, run_id: str) -> None:
        """Forgets a run that has ended. NotFound; FailedPrecondition while it has not."""
        with redis_errors():
            answer = await self._delete(
                keys=[redis_keys.run(run_id), redis_keys.runs(), redis_keys.run_log(run_id)],
                args=[run_id],
            )
        if answer == 0:
            raise _unknown(run_id)
        if answer == -1:
            raise FailedPrecondition(
                f"run {run_id} has not ended; cancel it, then delete it", reason="RUN_NOT_ENDED"
            )

    async def save(self, run: rec.RunRecord, leadership: Leadership) -> None:
        """Stores the run as its next revision. Aborted when this is not the leader any more or
        the run was changed meanwhile; the run is as it was then."""
        before = run.revision
        run.revision = before + 1
        try:
            with redis_errors():
                answer = await self._save(
                    keys=[
                        redis_keys.run(run.run_id),
                        redis_keys.active_runs(),
                        redis_keys.run_events(),
                        redis_keys.lease(LEASE),
                        redis_keys.run_log(run.run_id),
                    ],
                    args=[
                        run.run_id,
                        leadership.value,
                        before,
                        run.SerializeToString(),
                        "1" if run.state in ENDED else "0",
                        _EVENTS,
                        _entry(run),
                        _state(run),
                        _LOGGED,
                        _LOG_TTL_S,
                    ],
                )
        except BaseException:
            run.revision = before
            raise
        if answer != 1:
            run.revision = before
            what = "another coordinator leads" if answer == -1 else "its record changed meanwhile"
            raise Aborted(f"run {run.run_id} was not saved: {what}", reason="FENCE_STALE")


def number_of(run: rec.RunRecord) -> int:
    """The run's place in the order of submission; of a run from before they were numbered, its
    time, which the numbers go on from."""
    return run.number or run.submitted_unix_ms


def principal_of(run: rec.RunRecord) -> Principal:
    """On whose behalf its steps are done; the platform's for a run that has no owner."""
    if not run.owner.tenant:
        return SYSTEM
    scopes = {"jobs", "admin"} if run.by_admin else {"jobs"}
    return Principal(run.owner.tenant, run.owner.key_id, frozenset(scopes))


def _run(run_id: str, raw: bytes) -> rec.RunRecord:
    try:
        return rec.RunRecord.FromString(raw)
    except DecodeError as error:
        raise DataLoss(
            f"the record of run {run_id} is damaged: {error}", reason="RECORD_DAMAGED"
        ) from error


def _told(run_id: str, raw: bytes | None) -> rec.RunRecord | Damaged | None:
    """For a list."""
    try:
        return None if raw is None else _run(run_id, raw)
    except DataLoss:
        return Damaged(f"runs/{run_id}")


def _entry(run: rec.RunRecord) -> bytes:
    """The run as its log keeps it: without the pipeline, which never changes."""
    kept = rec.RunRecord()
    kept.CopyFrom(run)
    kept.pipeline_yaml = ""
    return kept.SerializeToString()


def _state(run: rec.RunRecord) -> str:
    """A digest of all in it that is no progress."""
    steps = [(step.name, step.state, step.job_id, step.error, step.output) for step in run.steps]
    return hashlib.sha256(repr((run.state, run.error, steps)).encode()).hexdigest()[:16]


def _unknown(run_id: str) -> NotFound:
    return NotFound(f"there is no run {run_id!r}", reason="RUN_NOT_FOUND", field="name")
