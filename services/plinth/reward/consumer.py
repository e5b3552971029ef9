"""Takes reward tasks from the queue, a few at a time; each ends with its result, once.

A task is held by a lease with heartbeats. When this replica dies, the lease lapses and the task
goes on elsewhere under a higher fence; what a late holder still says is refused. So nothing is
lost, and no second result is stored. What is wrong with the task itself, or with a model's scores,
makes it a dead letter with the reason; a tokenizer that is away, another attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from google.protobuf.message import DecodeError

from plinth.internal.v1 import reward_tasks_pb2
from plinth.shared import tracing
from plinth.shared.errors import (
    Cancelled,
    Internal,
    InvalidArgument,
    PlinthError,
    Unavailable,
    described,
)
from plinth.shared.queue import Lease, LeaseLost, Queue
from plinth.shared.rewards import reason_of
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import counter, get_logger
from plinth.v1 import rewards_pb2

Score = Callable[[rewards_pb2.ScoreRewardsRequest], Awaitable[rewards_pb2.ScoreRewardsResponse]]
Announce = Callable[[str, str], Awaitable[None]]
_CLAIM_S = 5.0
_REDIS_RETRY_S = 0.5

_log = get_logger("plinth.reward")
_ENDED = counter("reward_tasks_total", "Reward tasks that this replica ended, by how", ["end"])
T = TypeVar("T")


class TaskConsumer:
    """`tasks` loops of one replica."""

    def __init__(
        self,
        name: str,
        queue: Queue,
        score: Score,
        announce: Announce,
        *,
        tasks: int,
        lease_s: float,
    ) -> None:
        self._name, self._queue = name, queue
        self._score, self._announce = score, announce
        self._tasks, self._lease_s = tasks, lease_s
        self._stopping = asyncio.Event()
        self.running = 0

    async def run(self) -> None:
        """Until `drain`; a loop that breaks breaks all."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._tasks):
                group.create_task(self._loop())

    def drain(self) -> None:
        """Claim nothing more; what is in work goes on to its end."""
        self._stopping.set()

    async def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                if (lease := await self._claim()) is not None:
                    await self._attend(lease)
            except Unavailable as away:
                _log.warning("Redis is away, reward tasks wait", error=away.message)
                await asyncio.sleep(_REDIS_RETRY_S)
            except LeaseLost as lost:
                _ENDED.labels("lost").inc()
                _log.warning("reward task went on elsewhere", error=lost.message)

    async def _claim(self) -> Lease | None:
        """The next task, or None after a while or when it is time to stop."""
        claim = asyncio.create_task(self._queue.claim(self._name, wait_s=_CLAIM_S))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({claim, stop}, return_when=asyncio.FIRST_COMPLETED)
            return claim.result() if claim.done() else None
        finally:
            # A claim that is cancelled gives back what it has just got.
            await cancel_and_wait(claim, stop)

    async def _attend(self, lease: Lease) -> None:
        """Works on it. What breaks while its end is told leaves the rest to its next attempt."""
        try:
            with lease.traced():
                await self._work(lease)
        except (Unavailable, LeaseLost):
            raise
        except Exception:  # noqa: BLE001 - one task must not end the consumers of all
            _log.exception("a reward task's end was not told; its lease lapses", task=lease.id)

    async def _work(self, lease: Lease) -> None:
        self.running += 1
        announce = ""
        try:
            task = _task(lease)
            announce = task.announce
            response = await self._attended(task.request, lease)
            result = response.SerializeToString()
            await self._said(lambda: self._queue.complete(lease, result))
            _ENDED.labels("completed").inc()
        except LeaseLost:
            raise
        except Cancelled:
            await self._said(lambda: self._queue.fail(lease, "cancelled", retry=False))
            _ENDED.labels("cancelled").inc()
        except PlinthError as error:
            await self._failed(lease, error, retry=error.transient)
        except asyncio.CancelledError:
            with suppress(PlinthError):  # then the lease lapses by itself
                await self._queue.release(lease)
            raise
        except Exception as crash:  # noqa: BLE001 - a task's crash must not end the consumer
            _log.exception("reward task crashed", task=lease.id)
            await self._failed(lease, Internal(described(crash)), retry=True)
        finally:
            self.running -= 1
        if announce:
            with suppress(PlinthError):  # who waits looks by itself, a second later
                await self._announce(announce, lease.id)

    async def _attended(
        self, request: rewards_pb2.ScoreRewardsRequest, lease: Lease
    ) -> rewards_pb2.ScoreRewardsResponse:
        """Score with heartbeats beside it. Raises LeaseLost, or Cancelled when it is to stop."""
        work = asyncio.ensure_future(self._score(request))
        heart = asyncio.create_task(self._heartbeats(lease))
        try:
            await asyncio.wait({work, heart}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else heart.result()
        finally:
            await cancel_and_wait(work, heart)

    async def _heartbeats(self, lease: Lease) -> rewards_pb2.ScoreRewardsResponse:
        while True:
            # A cancellation shows at the next beat, so beats are not far apart.
            await asyncio.sleep(min(1.0, self._lease_s / 3))
            try:
                await self._queue.heartbeat(lease)
            except Unavailable:
                _log.warning("Redis is away, the task goes on", task=lease.id)

    async def _failed(self, lease: Lease, error: PlinthError, *, retry: bool) -> None:
        _log.info("reward task failed", task=lease.id, error=error.message, retry=retry)
        tracing.failed(error.reason or error.code)
        reason = reason_of(error)
        await self._said(lambda: self._queue.fail(lease, reason, retry=retry))
        _ENDED.labels("retried" if retry else "failed").inc()

    async def _said(self, say: Callable[[], Awaitable[T]]) -> T:
        """Say it once Redis is there to hear it."""
        while True:
            try:
                return await say()
            except Unavailable:
                await asyncio.sleep(_REDIS_RETRY_S)


def _task(lease: Lease) -> reward_tasks_pb2.RewardTask:
    try:
        return reward_tasks_pb2.RewardTask.FromString(lease.payload)
    except DecodeError:
        raise InvalidArgument(f"{lease.id} is no RewardTask", reason="MESSAGE_MALFORMED") from None
