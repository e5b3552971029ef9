"""Reward and tokenizer replicas in this process, their fixtures, and how to ask them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from plinth.reward.service import build as build_reward
from plinth.shared.errors import (
    PlinthError,
)
from plinth.shared.identity import Principal
from plinth.shared.rpc.channel import open_channel
from plinth.shared.settings import Settings, load_settings
from plinth.shared.stage import RunningStage, StageContext, run_stage
from plinth.tokenizer.service import build as build_tokenizer
from plinth.v1 import rewards_pb2 as pb
from plinth.v1.rewards_pb2_grpc import RewardServiceStub
from rewards import reward_model

LEASE_S = 1.5


class Stack:
    """Replicas in this process, and how to call them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.parts: list[tuple[StageContext, RunningStage]] = []

    async def add(self, stage: str, build: Callable[..., Any]) -> RunningStage:
        context = await StageContext.open(self.settings, stage=stage)
        running = await run_stage(context, build(context))
        self.parts.append((context, running))
        return running

    @property
    def context(self) -> StageContext:
        return self.parts[0][0]

    def channel(self, address: str, stage: str, scopes: tuple[str, ...]) -> grpc.aio.Channel:
        principal = Principal("t", "k", frozenset(scopes))
        return open_channel(
            address,
            stage=stage,
            settings=self.settings,
            token=self.context.token,
            principal=principal,
        )

    async def stop(self) -> None:
        for context, running in reversed(self.parts):
            await running.stop(10)
            await context.close()


@pytest.fixture
async def stack(redis_client: Any, redis_server: str, tmp_path: Path) -> AsyncIterator[Stack]:
    settings = {"lease_s": LEASE_S, "tasks": 2}
    made = Stack(load_settings(data_dir=tmp_path, redis_url=redis_server, reward=settings))
    await made.add("tokenizer", build_tokenizer)
    yield made
    await made.stop()


@pytest.fixture
def judge(stack: Stack, tmp_path: Path) -> Path:
    folder = reward_model(tmp_path / "made" / "judge")
    stack.context.store.publish("judge", "reward", folder)
    return folder


@pytest.fixture
async def stub(stack: Stack) -> AsyncIterator[RewardServiceStub]:
    running = await stack.add("reward", build_reward)
    async with stack.channel(running.address, "reward", ("rewards",)) as channel:
        yield RewardServiceStub(channel)


def ask(sources: list[pb.RewardSource], items: list[pb.RewardItem], tokenizer: str = "") -> (
    pb.ScoreRewardsRequest
):  # fmt: skip
    return pb.ScoreRewardsRequest(sources=sources, items=items, tokenizer=tokenizer)


async def refused(call: Any, kind: type[PlinthError], words: str) -> PlinthError:
    with pytest.raises(kind) as caught:
        await call
    assert words in caught.value.message
    return caught.value


JUDGE = pb.RewardSource(name="judge", model="judge")
