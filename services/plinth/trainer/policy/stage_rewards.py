"""Rewards by the reward stage: rules and models over its queue, for answers to prompts with checks.

A group is a task, queued as soon as its answers are there. A task's id comes from what is asked, so
a run that goes on after a crash gets what was scored.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from typing import Any

from google.protobuf.json_format import ParseDict

from plinth.shared.api.structs import struct_of
from plinth.shared.connection import connect
from plinth.shared.errors import DeadlineExceeded, FailedPrecondition
from plinth.shared.rewards import RewardTasks, divided
from plinth.shared.rollouts import StopAsked
from plinth.trainer.policy.rollouts import Rollout
from plinth.v1 import rewards_pb2 as pb

_LOOK_S = 2.0  # how often it is asked whether the run is to stop
_PATIENCE_S = 600.0


class StageRewards:
    """A `Reward`: one finite number for each answer. Not thread-safe; close it."""

    def __init__(
        self,
        redis_url: str,
        run_id: str,
        sources: Sequence[Mapping[str, Any]],
        *,
        tokenizer: str,
        checks: Mapping[tuple[int, ...], str],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """sources: RewardSource as JSON. checks: JSON rules by prompt. tokenizer: of the ids."""
        self._sources = [ParseDict(dict(source), pb.RewardSource()) for source in sources]
        self._tokenizer, self._stop = tokenizer, stop
        self._checks = {
            prompt: [struct_of(check, "checks") for check in json.loads(text)]
            for prompt, text in checks.items()
            if text
        }
        self._run_id = run_id
        self._runner = asyncio.Runner()
        self._redis = self._runner.run(_connected(redis_url))
        self._tasks = RewardTasks(self._redis, run_id)
        self._begun: set[str] = set()

    def close(self) -> None:
        self._runner.run(self._redis.aclose())
        self._runner.close()

    def begin(self, group: Sequence[Rollout]) -> None:
        """Has the answers to one prompt scored while others are still sampled."""
        for id, request in self._requests(group):
            self._runner.run(self._tasks.submit(id, request))
            self._begun.add(id)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """In their order, which must hold groups together. Raises what scoring raises;
        FailedPrecondition names an answer that can't be scored; StopAsked."""
        ids: list[str] = []
        for _, group in groupby(rollouts, lambda rollout: rollout.group):
            for id, request in self._requests(list(group)):
                if id not in self._begun:
                    self._runner.run(self._tasks.submit(id, request))
                ids.append(id)
        rewards = self._runner.run(self._scored(ids))
        self._begun.clear()
        return [_total(rollout, one) for rollout, one in zip(rollouts, rewards, strict=True)]

    def _requests(self, group: Sequence[Rollout]) -> Iterator[tuple[str, pb.ScoreRewardsRequest]]:
        """With their ids; one, unless the group is too large for the queue."""
        items = [self._item(rollout) for rollout in group]
        for request in divided(self._sources, items, self._tokenizer):
            content = sha256(request.SerializeToString(deterministic=True)).hexdigest()[:32]
            yield f"{self._run_id}.{content}", request

    def _item(self, rollout: Rollout) -> pb.RewardItem:
        return pb.RewardItem(
            prompt_tokens=pb.RewardTokens(ids=rollout.prompt),
            response_tokens=pb.RewardTokens(ids=rollout.response),
            checks=self._checks.get(rollout.prompt, ()),
        )

    async def _scored(self, ids: Sequence[str]) -> list[pb.Reward]:
        rewards: list[pb.Reward] = []
        end = time.monotonic() + _PATIENCE_S
        for number, id in enumerate(ids):
            while True:
                try:
                    rewards += (await self._tasks.wait(id, timeout_s=_LOOK_S)).rewards
                    break
                except DeadlineExceeded:
                    if self._stop():
                        for left in ids[number:]:
                            await self._tasks.cancel(left)
                        raise StopAsked from None
                    if time.monotonic() > end:
                        raise
        return rewards


async def _connected(url: str) -> Any:
    return connect(url)


def _total(rollout: Rollout, reward: pb.Reward) -> float:
    if not reward.HasField("total"):
        why = next(part for part in reward.parts if not part.HasField("value"))
        raise FailedPrecondition(
            f"rollout {rollout.id} can't be scored by {why.source}: {why.reason}",
            reason="NOT_SCORED",
        )
    return reward.total
