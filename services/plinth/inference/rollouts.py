"""A shard samples for policy runs with what room it has: tasks are pulled, interactive work first.

The policy is a weight set of its own beside the served one. It is exchanged while none of its
tasks runs, from the folder that a task names, and its digest is computed from what arrived: a task
whose weights are not what was sent is refused, and dead-lettered when it stays so. The result is
stored in the same move that ends the task, so a shard that dies loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from plinth.engine.request import Binding, Finish, Request, Sampling
from plinth.engine.weight_set import RUNNING, WeightSet
from plinth.inference.client import EngineClient
from plinth.inference.lent import LentAnswer
from plinth.internal.v1 import rollouts_pb2 as pb
from plinth.shared import tracing
from plinth.shared.errors import (
    Cancelled,
    DataLoss,
    InvalidArgument,
    NotFound,
    PlinthError,
    Unavailable,
)
from plinth.shared.queue import Lease, LeaseLost, Queue
from plinth.shared.rollout_results import MAX_SAMPLES, RolloutResults
from plinth.shared.rollouts import LEASE_S
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import counter, get_logger

_log = get_logger("plinth.inference.rollouts")
_CLAIM_S = 2.0
_RETRY_S = 0.5
_TASKS = counter("rollout_tasks_total", "Rollout tasks answered, refused or lost", ("outcome",))
for _outcome in ("answered", "refused", "lost"):  # a series that appears at 1 shows no increase
    _TASKS.labels(_outcome)
_SAMPLES = counter("rollout_tokens_total", "Tokens sampled for policy runs")


class RolloutConsumer:
    """Pulls rollout tasks on behalf of one shard, as many at once as fill the policy's batch."""

    def __init__(
        self,
        shard_id: str,
        queue: Queue,
        engine: EngineClient,
        results: RolloutResults,
        *,
        device: str,
        kv_bytes: int,
        idle_s: float,
    ) -> None:
        """`results` packs what is answered. `idle_s`: how long the weights of a policy nobody asks
        for are kept."""
        self._shard_id, self._queue, self._engine = shard_id, queue, engine
        self._results, self._idle_s = results, idle_s
        self._policy = _Policy(engine, device, kv_bytes)
        self._samples = 0  # in work
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Answers being sampled."""
        return self._samples

    async def run(self) -> None:
        """Until cancelled; what is in work is then given back."""
        idle_since = asyncio.get_running_loop().time()
        try:
            while True:
                lease = await self._claim()
                now = asyncio.get_running_loop().time()
                if lease is not None:
                    self._start(lease)
                if self._tasks:
                    idle_since = now
                elif now - idle_since > self._idle_s:
                    await self._policy.let_go()
        finally:
            await cancel_and_wait(*self._tasks)

    async def _claim(self) -> Lease | None:
        """The next task once there is room for one; None after a while."""
        while self._samples >= RUNNING:
            self._changed.clear()
            await self._changed.wait()
        try:
            return await self._queue.claim(self._shard_id, wait_s=_CLAIM_S)
        except Unavailable as away:
            _log.warning("Redis is away, rollouts wait", error=away.message)
            await asyncio.sleep(_RETRY_S)
            return None

    def _start(self, lease: Lease) -> None:
        """In the background; its samples count from now on: no more is claimed than fits."""
        try:
            task = pb.RolloutTask.FromString(lease.payload)
            check_task(task)
        except Exception as wrong:  # noqa: BLE001 - a message that can't be read, whatever it is
            self._spawn(self._refuse(lease, f"not a rollout task: {wrong}", retry=False), 0)
            return
        self._spawn(self._work(lease, task), task.samples)

    def _spawn(self, work: Coroutine[Any, Any, None], samples: int) -> None:
        task = asyncio.create_task(work)
        self._samples += samples
        self._tasks.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            self._samples -= samples
            self._changed.set()
            if not done.cancelled() and (error := done.exception()) is not None:
                _log.error("rollout.crashed", error=repr(error))

        task.add_done_callback(ended)

    async def _work(self, lease: Lease, task: pb.RolloutTask) -> None:
        with lease.traced():
            await self._attend(lease, task)

    async def _attend(self, lease: Lease, task: pb.RolloutTask) -> None:
        answering = asyncio.create_task(self._answer(lease, task))
        heart = asyncio.create_task(self._heartbeats(lease))
        try:
            await asyncio.wait({answering, heart}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                heart.result()  # raises: it ends in no other way
            result = answering.result()
            packed = await asyncio.to_thread(self._results.pack, result)
            await _said(self._queue.complete, lease, packed)
            _TASKS.labels("answered").inc()
            _SAMPLES.inc(sum(len(sample.ids) for sample in result.samples))
        except LeaseLost as lost:
            _TASKS.labels("lost").inc()
            _log.info("rollout went on elsewhere", task=lease.id, error=lost.message)
        except Cancelled as cancelled:
            await self._refuse(lease, cancelled.message, retry=False)
        except asyncio.CancelledError:
            with suppress(PlinthError):  # else the lease lapses by itself
                await self._queue.release(lease)
            raise
        except PlinthError as error:
            await self._refuse(lease, error.message, retry=error.transient)
        finally:
            await cancel_and_wait(answering, heart)

    async def _refuse(self, lease: Lease, reason: str, *, retry: bool) -> None:
        _TASKS.labels("refused").inc()
        tracing.failed("refused")
        _log.warning("rollout refused", task=lease.id, reason=reason, again=retry)
        with suppress(LeaseLost):
            await _said(self._queue.fail, lease, reason, retry=retry)

    async def _heartbeats(self, lease: Lease) -> None:
        """Raises LeaseLost, or Cancelled when the task is to stop."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(Unavailable):
                await self._queue.heartbeat(lease)

    async def _answer(self, lease: Lease, task: pb.RolloutTask) -> pb.RolloutResult:
        async with self._policy.holding(task.policy) as weights:
            digest = weights.engine.weights_digest
            answers = await self._engine.answers(
                [_request(lease, task, index, digest) for index in range(task.samples)]
            )
        return pb.RolloutResult(
            revision=task.policy.revision,
            weights_digest=digest,
            samples=[_sample(index, answer) for index, answer in enumerate(answers)],
            shard_id=self._shard_id,
        )


class _Policy:
    """Whose weights the lent engine has, and how many answers are being made with them."""

    def __init__(self, engine: EngineClient, device: str, kv_bytes: int) -> None:
        self._engine, self._device, self._kv_bytes = engine, device, kv_bytes
        self._set: WeightSet | None = None
        self._folder = ""  # where its weights came from
        self._users = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._exchange = asyncio.Lock()

    @asynccontextmanager
    async def holding(self, wanted: pb.PolicyWeights) -> AsyncIterator[WeightSet]:
        """The weights named, which stay while the block runs. Unavailable: this shard does not see
        them, or not whole."""
        async with self._exchange:  # those who come later, for whatever weights, wait their turn
            if self._set is not None and self._engine.lent is not self._set.engine:
                self._set, self._folder = None, ""  # it broke
            held = self._set
            if held is None or not self._is(wanted):
                await self._quiet.wait()
                self._folder = ""
                try:
                    held = await self._take(Path(wanted.folder), wanted.digest)
                except (DataLoss, NotFound) as error:
                    # Of shared storage another shard, or this one a moment later, sees more.
                    raise Unavailable(error.message, reason=error.reason) from error
                self._folder = wanted.folder
            self._users += 1
            self._quiet.clear()
        try:
            yield held
        finally:
            self._users -= 1
            if not self._users:
                self._quiet.set()

    def _is(self, wanted: pb.PolicyWeights) -> bool:
        """Whether these are the weights that are held."""
        if wanted.digest:
            return self._set is not None and self._set.engine.weights_digest == wanted.digest
        return self._folder == wanted.folder

    async def let_go(self) -> None:
        """Free the memory."""
        async with self._exchange:
            if self._set is not None and not self._users:
                await self._engine.lend(None)
                self._set = None

    async def _take(self, folder: Path, digest: str) -> WeightSet:
        """Off the engine's thread and the loop: nothing runs on the policy's engine now."""
        held = self._set
        if held is None or not await asyncio.to_thread(held.fits, folder):
            await self._engine.lend(None)
            self._set = None
            held = await asyncio.to_thread(
                WeightSet.open, folder, device=self._device, kv_bytes=self._kv_bytes
            )
        await asyncio.to_thread(held.take, folder, digest)
        if self._set is not held:
            await self._engine.lend(held.engine)
            self._set = held
        return held


def check_task(task: pb.RolloutTask) -> None:
    """InvalidArgument unless the message is complete."""
    if not task.policy.folder:
        raise InvalidArgument("names no weights", field="policy")
    if not task.prompt_ids:
        raise InvalidArgument("has no prompt", field="prompt_ids")
    if not 1 <= task.samples <= MAX_SAMPLES:
        raise InvalidArgument(
            f"wants {task.samples} samples, must be 1 to {MAX_SAMPLES}", field="samples"
        )


def _request(lease: Lease, task: pb.RolloutTask, index: int, digest: str) -> Request:
    return Request(
        f"rollout.{lease.id}.{lease.fence}.{index}",
        tuple(task.prompt_ids),
        Binding(digest),
        Sampling(
            temperature=task.temperature,
            max_tokens=task.max_tokens,
            stop_ids=frozenset(task.stop_ids),
            keep_stop=True,
            seed=task.seed,
            sample_index=index,
            speculation="off",
        ),
    )


def _sample(index: int, answer: LentAnswer) -> pb.RolloutSample:
    return pb.RolloutSample(
        sample_index=index,
        ids=[token.id for token in answer.tokens],
        token_logprobs=[token.logprob for token in answer.tokens],
        raw_token_logprobs=[token.raw_logprob for token in answer.tokens],
        ended=answer.finish is Finish.STOP,
    )


async def _said(say: Callable[..., Awaitable[None]], *arguments: Any, **named: Any) -> None:
    """Say it once Redis is there to hear it."""
    while True:
        try:
            await say(*arguments, **named)
            return
        except Unavailable:
            await asyncio.sleep(_RETRY_S)
