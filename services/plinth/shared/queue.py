"""Work that is pulled, never pushed: Redis Streams with a consumer group, leases and fencing.

An item has an id that Plinth makes; the same id is accepted once. A consumer claims an item with
a lease, keeps it by heartbeats, and ends it with `complete` (result stored, item gone, in one
step), `fail` (a later retry, or a dead letter) or `release`. When the consumer dies, its lease
lapses and the item goes to another one with a higher fence; whatever the first still says is
refused by its stale fence. Delivery is at least once, completion exactly once.

Redis gone means `Unavailable` from every call; a loop around `claim` just goes on, and what was
accepted is there when Redis is back (its AOF is on the disk before `add` returns). Every call
may be sent twice without harm, as redis-py does when a connection breaks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from plinth.shared import queue_scripts as scripts
from plinth.shared import tracing
from plinth.shared.connection import redis_errors
from plinth.shared.errors import (
    Aborted,
    Cancelled,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
    plain,
)
from plinth.shared.redis_keys import QueueKeys, check_part, queues

MAX_PAYLOAD_BYTES = 4 << 20  # larger things go by artifact reference
MAX_BACKOFF_S = 300.0
MAX_REASON_CHARS = 2000
_BLOCK_S = 1.0  # longest wait in one call: how late a retry made meanwhile may be noticed
_IDLE_CONSUMER_S = 3600.0
_SWEEP_EVERY_S = 600.0


class LeaseLost(Aborted):
    """The lease lapsed and the item went on without this consumer: drop the work."""


@dataclass(frozen=True)
class Lease:
    """A claimed item. `attempts` counts this one; `fence` grows with every claim of the queue.

    trace: the traceparent of who added it; empty where nobody traces.
    """

    queue: str
    entry_id: str
    id: str
    payload: bytes
    fence: int
    attempts: int
    deadline_unix_s: float | None
    trace: str = ""

    def traced(self) -> AbstractContextManager[None]:
        """The work on it as a span below the one in which it was added."""
        attributes: tracing.Attributes = {
            "messaging.system": "redis",
            "messaging.destination.name": self.queue,
            "messaging.message.id": self.id,
            "plinth.attempt": self.attempts,
        }
        title = f"{self.queue} process"
        return tracing.span(title, kind="consumer", parent=self.trace, attributes=attributes)


@dataclass(frozen=True)
class QueueInfo:
    """Items by state: waiting (`length`), leased (`pending`), waiting for a retry, dead.

    oldest_s: how long the one that has waited longest has waited, in seconds; 0 if none waits.
    """

    length: int
    pending: int
    delayed: int
    dead: int
    oldest_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class DeadLetter:
    id: str
    reason: str
    payload: bytes
    attempts: int


@dataclass(frozen=True)
class ItemState:
    """state: waiting, leased, cancelling, delayed, dead, completed or cancelled.

    reason: why the last attempt failed, empty if none did.
    """

    state: str
    attempts: int
    reason: str


class Queue:
    """One queue by name. Any number of instances, tasks and processes may share it."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        *,
        lease_s: float = 15,
        max_attempts: int = 5,
        max_length: int = 10_000,
        backoff_s: float = 1.0,
        result_ttl_s: float = 7 * 86400,
    ) -> None:
        """max_length: items waiting, leased and delayed together. backoff_s: before the first
        retry, doubled each time, at most five minutes. result_ttl_s: how long results, and the
        ids of completed and cancelled items, are remembered."""
        self.name = name
        self._redis = redis
        self._keys = QueueKeys(name)
        self._lease_ms = _ms(lease_s)
        self._max_attempts = max_attempts
        self._max_length = max_length
        self._backoff_ms = _ms(backoff_s)
        self._result_ttl_ms = _ms(result_ttl_s)
        keys = self._keys
        self._base = [keys.stream, keys.items, keys.payloads, keys.leases, keys.delayed]
        self._base += [keys.dead, keys.cancelled, keys.fence]
        self._scripts: dict[str, AsyncScript] = {}
        self._listed = False
        self._swept = -math.inf
        timeout = redis.connection_pool.connection_kwargs.get("socket_timeout")
        self._block_s = min(_BLOCK_S, timeout / 2) if timeout else _BLOCK_S

    # -- producers -------------------------------------------------------------------------

    async def add(self, id: str, payload: bytes, *, deadline_unix_s: float | None = None) -> bool:
        """Accepts an item, durably. False: that id was added before (also by this very call, if
        its connection broke in the middle), whatever became of it.

        deadline_unix_s: an item that is not claimed before becomes a dead letter.
        ResourceExhausted: the queue is full.
        """
        _check_size(payload, "payload")
        if not self._listed:
            with redis_errors():
                await self._redis.sadd(queues(), self.name)
            self._listed = True
        deadline = "" if deadline_unix_s is None else _ms(deadline_unix_s)
        args = [id, payload, deadline, self._max_length, tracing.traceparent()]
        answer = await self._run(scripts.ADD, args, result_of=id)
        if answer == b"full":
            raise self._full()
        return bool(answer == b"ok")

    async def cancel(self, id: str) -> bool:
        """Removes an item that nobody holds; one that is held is marked, and its holder's next
        heartbeat raises Cancelled. False: there is no such item (any more)."""
        answer = await self._run(scripts.CANCEL, [check_part(id, "id"), self._result_ttl_ms])
        return bool(answer != b"unknown")

    async def result(self, id: str) -> bytes | None:
        """What `complete` stored, None before that and after `result_ttl_s`."""
        with redis_errors():
            return await cast(
                Awaitable[bytes | None], self._redis.hget(self._keys.result(id), "value")
            )

    async def results(self, ids: Sequence[str]) -> list[bytes | None]:
        """The same for several, in one round trip."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    pipe.hget(self._keys.result(id), "value")
                return cast(list[bytes | None], await pipe.execute())

    # -- consumers -------------------------------------------------------------------------

    async def claim(self, consumer: str, *, wait_s: float) -> Lease | None:
        """The next item: a lapsed lease first, then the oldest that waits. None after `wait_s`.

        Also moves due retries back, and turns items past their attempts or deadline into dead
        letters. Cancelling this coroutine loses nothing: what was just claimed is given back.
        """
        check_part(consumer, "consumer")
        end = time.monotonic() + wait_s
        while True:
            task = asyncio.ensure_future(self._claim(consumer))
            try:
                got = await asyncio.shield(task)
            except asyncio.CancelledError:
                with suppress(PlinthError):  # then the lease lapses by itself
                    if isinstance(got := await task, Lease):
                        await self.release(got)
                raise
            if isinstance(got, Lease):
                return got
            last_entry, due_s = got
            left = end - time.monotonic()
            if left <= 0:
                return None
            block_ms = math.ceil(min(left, due_s, self._block_s) * 1000)
            if block_ms > 0:
                with redis_errors():
                    await self._redis.xread(
                        {self._keys.stream: last_entry}, count=1, block=block_ms
                    )

    async def heartbeat(self, lease: Lease) -> None:
        """Extends the lease by `lease_s` from now. LeaseLost; Cancelled when it is to stop.

        Call it about three times per `lease_s`.
        """
        answer = await self._run(scripts.HEARTBEAT, [lease.id, lease.fence, self._lease_ms])
        if answer == b"cancelled":
            raise Cancelled(f"{lease.id} of queue {self.name} was cancelled")
        self._check_held(answer, lease)

    async def complete(self, lease: Lease, result: bytes) -> None:
        """Stores the result under the item's id and ends the item. LeaseLost: a stale fence.

        A cancellation that came too late to be noticed does not matter: done is done.
        """
        _check_size(result, "result")
        args = [lease.id, lease.fence, result, self._result_ttl_ms]
        self._check_held(await self._run(scripts.COMPLETE, args, result_of=lease.id), lease)

    async def fail(self, lease: Lease, reason: str, *, retry: bool) -> None:
        """Ends this attempt: a retry after a back-off, or a dead letter with `reason` when
        `retry` is False or attempts are used up. A cancelled item just ends. LeaseLost."""
        why = plain(reason, MAX_REASON_CHARS)
        args = [lease.id, lease.fence, why, int(retry), self._max_attempts]
        args += [self._backoff_ms, _ms(MAX_BACKOFF_S), self._result_ttl_ms]
        self._check_held(await self._run(scripts.FAIL, args), lease)

    async def release(self, lease: Lease) -> None:
        """Gives the item back, first in line, as if it had not been claimed. LeaseLost."""
        args = [lease.id, lease.fence, self._result_ttl_ms]
        self._check_held(await self._run(scripts.RELEASE, args), lease)

    # -- operators -------------------------------------------------------------------------

    async def inspect(self) -> QueueInfo:
        waiting, leased, delayed, dead, oldest_ms = await self._run(scripts.INSPECT, [])
        return QueueInfo(waiting, leased, delayed, dead, oldest_ms / 1000)

    async def find(self, id: str) -> ItemState | None:
        """What became of an item; None: never added, or forgotten after `result_ttl_s`."""
        answer = await self._run(scripts.FIND, [id], result_of=id)
        if not answer:
            return None
        return ItemState(answer[0].decode(), answer[1], answer[2].decode(errors="replace"))

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Dead letters, newest first."""
        with redis_errors():
            ids = cast(
                list[bytes],
                await self._redis.zrange(self._keys.dead, 0, max(0, limit - 1), desc=True),
            )
            letters = []
            for raw in ids:
                found = await self.find(raw.decode())
                payload = await cast(
                    Awaitable[bytes | None], self._redis.hget(self._keys.payloads, raw.decode())
                )
                if found is not None and found.state == "dead" and payload is not None:
                    letters.append(DeadLetter(raw.decode(), found.reason, payload, found.attempts))
        return letters

    async def cancelled(self, limit: int = 100) -> list[str]:
        """Ids of cancelled items that are remembered, newest first."""
        with redis_errors():
            ids: Any = await self._redis.zrange(
                self._keys.cancelled, 0, max(0, limit - 1), desc=True
            )
        return [raw.decode() for raw in ids]

    async def requeue(self, id: str) -> bool:
        """Lets a dead letter wait again, with fresh attempts and no deadline. False: it is none.
        ResourceExhausted: the queue is full."""
        answer = await self._run(scripts.REQUEUE, [check_part(id, "id"), self._max_length])
        if answer == b"full":
            raise self._full()
        return bool(answer == b"ok")

    async def forget(self, id: str) -> bool:
        """Forgets what became of an item, so that its id can be added anew. False, and nothing is
        forgotten, while it waits or is held."""
        args = [check_part(id, "id")]
        return bool(await self._run(scripts.FORGET, args, result_of=id) == b"ok")

    # -- inside ----------------------------------------------------------------------------

    async def _claim(self, consumer: str) -> Lease | tuple[bytes, float]:
        """A lease; or the stream's last entry (to wait behind) and seconds until one is due."""
        now = time.monotonic()
        idle_ms = 0
        if now - self._swept > _SWEEP_EVERY_S:
            idle_ms = max(_ms(_IDLE_CONSUMER_S), 10 * self._lease_ms)
            self._swept = now
        args = [consumer, self._lease_ms, self._max_attempts, self._result_ttl_ms, idle_ms]
        answer = await self._run(scripts.CLAIM, args)
        if not answer[0]:
            return answer[1], answer[2] / 1000 if answer[2] >= 0 else math.inf
        id, payload, entry, fence, attempts, deadline, trace = answer
        return Lease(
            queue=self.name,
            entry_id=entry.decode(),
            id=id.decode(),
            payload=payload,
            fence=fence,
            attempts=attempts,
            deadline_unix_s=int(deadline) / 1000 if deadline else None,
            trace=trace.decode(),
        )

    async def _run(self, body: str, args: list[Any], *, result_of: str | None = None) -> Any:
        if body not in self._scripts:
            self._scripts[body] = self._redis.register_script(scripts.PRELUDE + body)
        keys = self._base if result_of is None else [*self._base, self._keys.result(result_of)]
        with redis_errors():
            return await self._scripts[body](keys=keys, args=args)

    def _check_held(self, answer: bytes, lease: Lease) -> None:
        if answer == b"lost":
            raise LeaseLost(
                f"{lease.id} of queue {self.name} is no longer held under fence {lease.fence}: "
                "its lease lapsed, or it was ended already",
                reason="LEASE_LOST",
            )

    def _full(self) -> ResourceExhausted:
        return ResourceExhausted(
            f"queue {self.name} holds {self._max_length} items, its limit; try again later",
            reason="QUEUE_FULL",
            retry_after_s=5.0,
        )


async def queue_names(redis: Redis) -> list[str]:
    """Names of the queues that ever held an item."""
    with redis_errors():
        names = await cast(Awaitable[set[bytes]], redis.smembers(queues()))
    return sorted(name.decode() for name in names)


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _check_size(data: bytes, what: str) -> None:
    if len(data) > MAX_PAYLOAD_BYTES:
        raise InvalidArgument(
            f"a {what} of {len(data)} bytes: at most {MAX_PAYLOAD_BYTES}; "
            "publish it as an artifact and pass its reference",
            field=what,
        )
