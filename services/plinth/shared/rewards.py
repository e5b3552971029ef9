"""Reward tasks over the queue: submitted once, awaited by anybody who knows the id.

For the coordinator and the trainer, who don't import the reward stage. A task outlives whoever
submitted it and every replica that worked on it; its result is stored once, with the queue's
fence. Its end is announced on a stream, so that waiting needs no polling; an announcement that is
lost costs a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from plinth.internal.v1 import reward_tasks_pb2
from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import (
    ERROR_TYPES,
    Cancelled,
    DeadlineExceeded,
    Internal,
    NotFound,
    PlinthError,
    Unavailable,
)
from plinth.shared.queue import MAX_PAYLOAD_BYTES, Queue
from plinth.v1 import rewards_pb2

QUEUE = "rewards"
# Each death of a replica costs an attempt.
MAX_ATTEMPTS = 10
MAX_ITEMS = 256  # of one task, so that replicas share what is large
_AROUND, _AROUND_ITEM = 1024, 16  # bytes: what a task says beside its request; a field's head
_LOOK_S = 1.0
_ANNOUNCED, _ANNOUNCED_TTL_S = 10_000, 3600


def rewards_queue(redis: Redis, *, lease_s: float = 15.0) -> Queue:
    """The one queue of reward tasks."""
    return Queue(redis, QUEUE, lease_s=lease_s, max_attempts=MAX_ATTEMPTS)


def divided(
    sources: Sequence[rewards_pb2.RewardSource],
    items: Sequence[rewards_pb2.RewardItem],
    tokenizer: str = "",
) -> Iterator[rewards_pb2.ScoreRewardsRequest]:
    """Requests for the items, in their order, each of which the queue takes; none for none."""
    bare = rewards_pb2.ScoreRewardsRequest(sources=sources, tokenizer=tokenizer)
    room = MAX_PAYLOAD_BYTES - bare.ByteSize() - _AROUND
    here: list[rewards_pb2.RewardItem] = []
    size = 0
    for item in items:
        bytes_ = item.ByteSize() + _AROUND_ITEM
        if here and (size + bytes_ > room or len(here) == MAX_ITEMS):
            yield rewards_pb2.ScoreRewardsRequest(sources=sources, items=here, tokenizer=tokenizer)
            here, size = [], 0
        here.append(item)
        size += bytes_
    if here:
        yield rewards_pb2.ScoreRewardsRequest(sources=sources, items=here, tokenizer=tokenizer)


class RewardTasks:
    """One waiter. `name`: what its announcements are called (a run's id, say)."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis, self._name = redis, redis_keys.check_part(name, "name")
        self._queue = rewards_queue(redis)

    async def submit(
        self,
        id: str,
        request: rewards_pb2.ScoreRewardsRequest,
        *,
        deadline_unix_s: float | None = None,
    ) -> bool:
        """False: that id was submitted before, whatever its request. Safe to repeat: one that was
        given up for what may pass (a tokenizer that was away for long) is tried anew.

        ResourceExhausted: the queue is full. InvalidArgument: more than 4 MiB; send fewer items.
        Unavailable: Redis is away.
        """
        task = reward_tasks_pb2.RewardTask(request=request, announce=self._name)
        payload = task.SerializeToString()
        added = await self._queue.add(id, payload, deadline_unix_s=deadline_unix_s)
        if not added:
            state = await self._queue.find(id)
            if state is not None and state.state == "dead" and failure(id, state.reason).transient:
                await self._queue.requeue(id)
        return added

    async def cancel(self, id: str) -> bool:
        """False: there is no such task (any more)."""
        return await self._queue.cancel(id)

    async def result(self, id: str) -> rewards_pb2.ScoreRewardsResponse | None:
        """None while it waits or is worked on. Raises what scoring raised, when it failed for
        good; Cancelled; NotFound when it was never submitted, or is forgotten."""
        if (stored := await self._queue.result(id)) is not None:
            return rewards_pb2.ScoreRewardsResponse.FromString(stored)
        state = await self._queue.find(id)
        if state is None:
            raise NotFound(f"no reward task {id!r}", reason="REWARD_TASK_NOT_FOUND", field="id")
        if state.state == "dead":
            raise failure(id, state.reason)
        if state.state == "cancelled":
            raise Cancelled(f"reward task {id} was cancelled")
        if state.state == "completed":  # between the two looks
            return await self.result(id)
        return None

    async def wait(self, id: str, *, timeout_s: float) -> rewards_pb2.ScoreRewardsResponse:
        """The result, as soon as it is there; goes on while Redis is away. Raises as `result`,
        and DeadlineExceeded."""
        end = time.monotonic() + timeout_s
        last: bytes | str | None = None
        while True:
            try:
                # Where the stream ends is read before the result: nothing ends in between unseen.
                last = await self._end_of_stream() if last is None else last
                if (found := await self.result(id)) is not None:
                    return found
                left = min(_LOOK_S, end - time.monotonic())
                if left <= 0:
                    raise DeadlineExceeded(f"reward task {id} has not ended in {timeout_s:g} s")
                last = await self._next(last, left)
            except Unavailable as away:
                # What the task itself ended with is its answer.
                if not away.reason.startswith("REDIS_") or time.monotonic() >= end:
                    raise
                await asyncio.sleep(min(0.5, max(0.0, end - time.monotonic())))

    async def _end_of_stream(self) -> bytes:
        with redis_errors():
            newest: Any = await self._redis.xrevrange(redis_keys.rewards_done(self._name), count=1)
        return bytes(newest[0][0]) if newest else b"0"

    async def _next(self, last: bytes | str, wait_s: float) -> bytes | str:
        """Waits for any announcement behind `last`; the new last one."""
        block_ms = max(1, int(wait_s * 1000))
        with redis_errors():
            read: Any = await self._redis.xread(
                {redis_keys.rewards_done(self._name): last}, block=block_ms
            )
        return bytes(read[0][1][-1][0]) if read else last


async def announce(redis: Redis, name: str, id: str) -> None:
    """Tells who waits under `name` that a task has ended. Unavailable: they'll look by then."""
    key = redis_keys.rewards_done(name)
    with redis_errors():
        async with redis.pipeline(transaction=True) as pipe:
            pipe.xadd(key, {"id": id}, maxlen=_ANNOUNCED, approximate=True)
            pipe.expire(key, _ANNOUNCED_TTL_S)
            await pipe.execute()


def reason_of(error: PlinthError) -> str:
    """An error as a dead letter's reason, which `failure` reads."""
    return f"{error.code} {error.reason}: {error.message}"


def failure(id: str, reason: str) -> PlinthError:
    """The error that a dead letter tells of."""
    head, _, message = reason.partition(": ")
    code, _, word = head.partition(" ")
    kinds: Mapping[str, type[PlinthError]] = ERROR_TYPES
    if code not in kinds:  # the queue's own words: attempts used up, deadline passed
        return Internal(f"reward task {id} failed: {reason}", reason="REWARD_TASK_DEAD")
    return kinds[code](f"reward task {id}: {message}", reason=word)
