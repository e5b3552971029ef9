"""Where those who want rollouts and the shards that sample them meet: a queue, and how it is asked.

An item is a `RolloutTask` (protos/plinth/internal/v1/rollouts.proto); its result is a
`RolloutResult`. The same question to the same weights has one id, so whoever asks again after a
crash gets what was answered already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from hashlib import sha256
from typing import TypeVar

from redis.asyncio import Redis

from plinth.internal.v1 import rollouts_pb2 as pb
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.queue import Queue
from plinth.shared.rollout_results import RESULT_TTL_S, RolloutResults
from plinth.shared.telemetry import get_logger

QUEUE = "rollouts"
LEASE_S = 15.0
MAX_ATTEMPTS = 7  # each death of a shard costs its tasks one
_DEADLINE_S = 3600.0  # a task of a run that is gone does not wait for ever
_POLL_S = 0.01
_LOOK_S = 1.0  # how often it is asked whether a task died, or the run is to stop
_REDIS_RETRY_S = 0.5

_log = get_logger("plinth.rollouts")
T = TypeVar("T")


class StopAsked(Exception):
    """The run is to stop, and its answers are not there yet. Nothing has come of them."""


def rollout_queue(redis: Redis) -> Queue:
    """The queue, as its producers and its consumers must open it alike."""
    return Queue(
        redis,
        QUEUE,
        lease_s=LEASE_S,
        max_attempts=MAX_ATTEMPTS,
        backoff_s=0.1,
        result_ttl_s=RESULT_TTL_S,
    )


def task_id(task: pb.RolloutTask) -> str:
    """By what is asked of which weights; where these lie does not matter if they have a digest."""
    bare = pb.RolloutTask()
    bare.CopyFrom(task)
    if bare.policy.digest:
        bare.policy.ClearField("folder")
    content = sha256(bare.SerializeToString(deterministic=True)).hexdigest()[:32]
    return f"{task.policy.run_id}.{task.policy.revision}.{task.group}.{content}"


class RolloutTasks:
    """One that asks. It waits while Redis is away."""

    def __init__(
        self,
        redis: Redis,
        results: RolloutResults,
        *,
        stop: Callable[[], bool] = lambda: False,
        patience_s: float = 600.0,
        heard: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`results` reads those that went through the store. `stop` is asked while it waits;
        StopAsked then. `patience_s`: without any result for so long, Unavailable. `heard` is told
        how many results are there."""
        self._queue, self._results = rollout_queue(redis), results
        self._stop, self._patience_s, self._heard = stop, patience_s, heard

    async def answers(self, tasks: Sequence[pb.RolloutTask]) -> list[pb.RolloutResult]:
        """One result per task, in their order, whoever was ready first. Raises as `arrivals`."""
        ids = await self.add(tasks)
        async with aclosing(self.arrivals(ids)) as arrivals:
            got = {id: result async for id, result in arrivals}
        return [got[id] for id in ids]

    async def add(self, tasks: Sequence[pb.RolloutTask]) -> list[str]:
        """Their ids, in order. However it ends early, none of them stays."""
        ids = [task_id(task) for task in tasks]
        deadline = time.time() + _DEADLINE_S
        try:
            for id, task in zip(ids, tasks, strict=True):
                add = partial(self._queue.add, id, task.SerializeToString())
                await self._said(partial(add, deadline_unix_s=deadline))
        except BaseException:
            await self.cancel(ids)
            raise
        return ids

    async def arrivals(
        self, ids: Sequence[str]
    ) -> AsyncGenerator[tuple[str, pb.RolloutResult], None]:
        """(id, result) of each, as they come.

        Raises FailedPrecondition when a task was given up, with its reason, and what `unpack`
        raises. However it ends early,
        what is left of the tasks is cancelled.
        """
        waiting = list(ids)
        heard = looked = time.monotonic()
        try:
            while waiting:
                values = await self._said(partial(self._queue.results, waiting))
                came = [(id, v) for id, v in zip(waiting, values, strict=True) if v is not None]
                for id, value in came:
                    waiting.remove(id)
                    heard = time.monotonic()
                    yield id, await asyncio.to_thread(self._results.unpack, value)
                self._heard(len(ids) - len(waiting))
                now = time.monotonic()
                if now - looked > _LOOK_S:
                    looked = now
                    await self._look(waiting, now - heard)
                if not came:
                    await asyncio.sleep(_POLL_S)
        finally:
            await self.cancel(waiting)

    async def cancel(self, ids: Sequence[str]) -> None:
        """Nobody waits for them any more."""
        for id in ids:
            try:
                await self._queue.cancel(id)
            except Unavailable:
                break

    async def _look(self, waiting: Sequence[str], silent_s: float) -> None:
        """Raises what keeps the results from ever coming."""
        if self._stop():
            raise StopAsked
        for id in waiting:
            state = await self._said(partial(self._queue.find, id))
            if state is None or state.state in ("dead", "cancelled"):
                reason = state.reason if state else "nobody knows it any more"
                raise FailedPrecondition(
                    f"rollout task {id} was given up: {reason}", reason="ROLLOUT_DEAD"
                )
        if silent_s > self._patience_s:
            raise Unavailable(
                f"no shard has answered a rollout for {silent_s:.0f} s; is a model served?",
                reason="NO_SHARD",
            )

    async def _said(self, say: Callable[[], Awaitable[T]]) -> T:
        """Say it once Redis is there to hear it."""
        while True:
            try:
                return await say()
            except Unavailable as away:
                _log.warning("Redis is away, rollouts wait", error=away.message)
                if self._stop():
                    raise StopAsked from away
                await asyncio.sleep(_REDIS_RETRY_S)
