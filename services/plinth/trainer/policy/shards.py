"""A policy sampled by the inference shards: orders go out by a queue, weights by a folder.

1. `renew` writes the weights where the shards read them, and names them by their digest.
2. `start` queues one task per prompt; `arrivals` tells their results as they come.
3. A result of other weights is refused. A task that no shard could do ends the run with its reason.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

from plinth.engine.request import Sampling
from plinth.internal.v1 import rollouts_pb2 as pb
from plinth.models.adapters.lora import merged_tensors
from plinth.models.decoder import Decoder
from plinth.models.weights import save_tensors, weights_digest
from plinth.shared.connection import connect
from plinth.shared.rollout_results import RolloutResults, logprobs, raw_logprobs
from plinth.shared.rollouts import RolloutTasks
from plinth.shared.storage import Storage
from plinth.trainer.policy.rollouts import Order, Rollout, RolloutSampler


class ShardSampler(RolloutSampler):
    """Not thread-safe; close it."""

    def __init__(
        self,
        decoder: Decoder,
        folder: Path,
        run_id: str,
        redis_url: str,
        storage: Callable[[], Storage],
        *,
        stop: Callable[[], bool] = lambda: False,
        patience_s: float = 600.0,
    ) -> None:
        """`folder`: where weights lie for the shards; `storage`: of results that are too large
        for the queue, opened for the first of them; `stop`, `patience_s`: see RolloutTasks."""
        self._decoder, self._folder, self._run_id = decoder, folder, run_id
        self._runner = asyncio.Runner()
        self._redis = self._runner.run(_connected(redis_url))
        results = RolloutResults(storage)
        self._tasks = RolloutTasks(self._redis, results, stop=stop, patience_s=patience_s)
        self._weights = pb.PolicyWeights(run_id=run_id)
        self._started: dict[str, Order] = {}  # by task

    def close(self) -> None:
        """Ends the connection; what nobody took is cancelled, the weights' folder goes too."""
        self._runner.run(self._tasks.cancel(list(self._started)))
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

    def start(self, orders: Sequence[Order], sampling: Sampling) -> None:
        tasks = [_task(self._weights, order, sampling) for order in orders]
        ids = self._runner.run(self._tasks.add(tasks))
        self._started = dict(zip(ids, orders, strict=True))

    def arrivals(self) -> Iterator[list[Rollout]]:
        started, self._started = self._started, {}
        results = self._tasks.arrivals(list(started))

        async def following() -> tuple[str, pb.RolloutResult] | None:
            return await anext(results, None)

        try:
            while (came := self._runner.run(following())) is not None:
                id, result = came
                yield _rollouts(started[id], result)
        finally:
            self._runner.run(results.aclose())


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
            tuple(logprobs(sample)),
            tuple(raw_logprobs(sample)),
            result.revision,
            result.weights_digest,
            sample.ended,
        )
        for sample in sorted(result.samples, key=lambda sample: sample.sample_index)
    ]
