"""What a step waits out, and what ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.coordinator.leader import Leadership
from plinth.coordinator.performer import Performer, waits_for
from plinth.coordinator.steps import STEP_KINDS
from plinth.coordinator.steps.contract import Work
from plinth.coordinator.steps.publish import PublishSpec
from plinth.shared.errors import ERROR_TYPES, Cancelled, ResourceExhausted
from plinth.shared.rewards import RewardTasks
from plinth.v1 import rewards_pb2


@pytest.mark.parametrize("kind", ERROR_TYPES.values())
def test_what_is_waited_out_is_what_passes_by_itself(kind: Any) -> None:
    """As the errors say of themselves; and room, which a run waits for whoever makes it."""
    assert waits_for(kind("x")) == (kind("x").transient or kind is ResourceExhausted)


async def test_a_reward_task_that_somebody_cancelled_ends_the_step(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays cancelled, however often it is asked for."""
    tasks = RewardTasks(redis_client, "n")

    async def execute(*_: Any) -> AsyncIterator[Any]:
        item = rewards_pb2.RewardItem(response_text="x")
        await tasks.submit("one", rewards_pb2.ScoreRewardsRequest(items=[item]))
        await tasks.cancel("one")
        yield await tasks.wait("one", timeout_s=PATIENCE_S)

    kind: Any = SimpleNamespace(pure=False, execute=execute)
    monkeypatch.setitem(STEP_KINDS, "publish", kind)
    tools: Any = SimpleNamespace(under=lambda _: tools, owned_by=lambda _: tools)
    performer = Performer(tools, tools, Leadership("me|1", 1e6, time.monotonic()))
    work = Work("r", "s", PublishSpec(kind="publish", model="m"), {}, "sha256:0", "m")

    async def events() -> list[Any]:
        async for event in performer.perform(work):
            raise AssertionError(event)  # it waits
        return []

    with pytest.raises(Cancelled, match="reward task one was cancelled"):
        await asyncio.wait_for(events(), PATIENCE_S)
