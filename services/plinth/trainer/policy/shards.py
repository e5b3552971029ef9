"""A policy sampled by the inference shards: orders go out by a queue, weights by a folder.

1. `renew` writes the weights where the shards read them, and names them by their digest.
2. `sample` queues one task per prompt and waits for all of their results, which come back in the
   order of the orders, whoever was ready first.
3. A result of other weights is refused. A task that no shard could do ends the run with its reason.

A run that goes on after a crash asks again under the same ids, and gets what was answered already.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from plinth.engine.request import Sampling
from plinth.models.decoder import Decoder
from plinth.models.lora import merged_tensors
from plinth.models.weights import save_tensors, weights_digest
from plinth.shared.connection import connect
from plinth.shared.errors import Aborted, Unavailable
from plinth.shared.queue import Queue
from plinth.shared.rollouts import rollout_queue, task_id
from plinth.shared.telemetry import get_logger
from plinth.trainer.policy.rollouts import Order, Rollout, StopAsked
from plinth.v1 import rollouts_pb2 as pb

_log = get_logger("plinth.trainer.rollouts")
_POLL_S = 0.01
_LOOK_S = 1.0  # how often it is asked whether a task died, or the run is to stop
_DEADLINE_S = 3600.0  # a task of a run that is gone does not wait for ever
_REDIS_RETRY_S = 0.5
T = TypeVar("T")


class ShardSampler:
    """A `Sampler`. Not thread-safe; close it."""

    def __init__(
        self,
        decoder: Decoder,
        folder: Path,
        run_id: str,
        redis_url: str,
        *,
        stop: Callable[[], bool] = lambda: False,
        patience_s: float = 600.0,
    ) -> None:
        """`folder`: where weights lie for the shards. `stop` is asked while it waits; StopAsked
        then. `patience_s`: without any result for so long, Unavailable."""
        self._decoder, self._folder, self._run_id = decoder, folder, run_id
        self._stop, self._patience_s = stop, patience_s
        self._runner = asyncio.Runner()
        self._redis = self._runner.run(_connected(redis_url))
        self._queue: Queue = rollout_queue(self._redis)
        self._weights = pb.PolicyWeights(run_id=run_id)

    def close(self) -> None:
        """Ends the connection; the weights' folder goes too."""
        self._runner.run(self._redis.aclose())
        self._runner.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def renew(self, revision: int) -> str:
        """Publish the decoder's present weights, adapters merged; their digest. The revision
        before last goes."""
        tensors = merged_tensors(self._decoder)
        digest = weights_digest(tensors)
        target = self._folder / f"{revision}-{token_hex(4)}"
        save_tensors(self._decoder.config, tensors, target)
        before = Path(self._weights.folder).name if self._weights.folder else ""
        for old in self._folder.iterdir():
            if old.name not in (target.name, before):
                shutil.rmtree(old, ignore_errors=True)
        self._weights = pb.PolicyWeights(
            run_id=self._run_id, revision=revision, folder=str(target.resolve()), digest=digest
        )
        return digest

    def sample(self, orders: Sequence[Order], sampling: Sampling) -> list[Rollout]:
        return self._runner.run(self._sample(orders, sampling))

    async def _sample(self, orders: Sequence[Order], sampling: Sampling) -> list[Rollout]:
        weights = self._weights
        tasks = [_task(weights, order, sampling) for order in orders]
        ids = [task_id(task) for task in tasks]
        deadline = time.time() + _DEADLINE_S
        try:
            for id, task in zip(ids, tasks, strict=True):
                add = partial(self._queue.add, id, task.SerializeToString())
                await self._said(partial(add, deadline_unix_s=deadline))
            results = await self._results(ids)
        except BaseException:
            for id in ids:  # nobody waits for them any more
                try:
                    await self._queue.cancel(id)
                except Unavailable:
                    break
            raise
        return [
            rollout
            for order, result in zip(orders, results, strict=True)
            for rollout in _rollouts(order, result)
        ]

    async def _results(self, ids: Sequence[str]) -> list[pb.RolloutResult]:
        """One per id, in their order."""
        got: dict[str, pb.RolloutResult] = {}
        heard = looked = time.monotonic()
        while len(got) < len(ids):
            waiting = [id for id in ids if id not in got]
            values = await self._said(partial(self._queue.results, waiting))
            for id, value in zip(waiting, values, strict=True):
                if value is not None:
                    got[id] = pb.RolloutResult.FromString(value)
                    heard = time.monotonic()
            now = time.monotonic()
            if now - looked > _LOOK_S:
                looked = now
                await self._look([id for id in waiting if id not in got], now - heard)
            await asyncio.sleep(_POLL_S)
        return [got[id] for id in ids]

    async def _look(self, waiting: Sequence[str], silent_s: float) -> None:
        """Raises what keeps the results from ever coming."""
        if self._stop():
            raise StopAsked
        for id in waiting:
            state = await self._said(partial(self._queue.find, id))
            if state is None or state.state in ("dead", "cancelled"):
                reason = state.reason if state else "nobody knows it any more"
                raise Aborted(f"rollout task {id} was given up: {reason}", reason="ROLLOUT_DEAD")
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


async def _connected(url: str) -> Any:
    return connect(url)


def _task(weights: pb.PolicyWeights, order: Order, sampling: Sampling) -> pb.RolloutTask:
    return pb.RolloutTask(
        policy=weights,
        group=order.group,
        prompt_ids=order.prompt,
        samples=order.samples,
        seed=order.seed,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        stop_ids=sorted(sampling.stop_ids),
    )


def _rollouts(order: Order, result: pb.RolloutResult) -> list[Rollout]:
    return [
        Rollout(
            order.group,
            sample.sample_index,
            order.prompt,
            tuple(sample.ids),
            order.seed,
            tuple(sample.logprobs),
            tuple(sample.raw_logprobs),
            result.revision,
            result.weights_digest,
            sample.ended,
        )
        for sample in sorted(result.samples, key=lambda sample: sample.sample_index)
    ]
