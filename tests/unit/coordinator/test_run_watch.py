"""A watch of a run, broken anywhere and resumed, tells each state once."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.coordinator import machine
from plinth.coordinator.leader import Leadership
from plinth.coordinator.run_service import RunServicer
from plinth.coordinator.runs import RunRecords
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.api.paging import Pages
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import InvalidArgument
from plinth.v1 import runs_pb2 as pb
from scripted_stages import Caller

STEPS = [f"s{number}" for number in range(6)]


def states(run: rec.RunRecord | pb.RunStatus) -> tuple[int, ...]:
    return (run.state, *(step.state for step in run.steps))


class Run:
    """A run whose steps end one after another, and what it was, by its own account."""

    def __init__(self, redis: Redis) -> None:
        self.redis, self.records = redis, RunRecords(redis)
        self.record = rec.RunRecord(
            run_id="r",
            state=pb.RUN_STATE_PENDING,
            pipeline_yaml="name: r",
            steps=[rec.StepRecord(name=name, state=pb.STEP_STATE_PENDING) for name in STEPS],
            submitted_unix_ms=1,
        )
        self.was: list[tuple[int, ...]] = []
        self.lead = Leadership("me|1", 60.0, 0.0)

    async def begin(self) -> None:
        await self.redis.set(redis_keys.lease("runs"), self.lead.value)
        self.record = await self.records.submit(self.record)
        self.was.append(states(self.record))

    async def save(self) -> None:
        await self.records.save(self.record, self.lead)
        if states(self.record) != self.was[-1]:
            self.was.append(states(self.record))

    async def live(self, rng: random.Random) -> None:
        self.record.state = pb.RUN_STATE_RUNNING
        for name in STEPS:
            machine.begin(self.record, name, input_digest="d", job_id="j", now=1)
            await self.save()
            for number in range(rng.randint(0, 4)):
                machine.advance(self.record, name, fraction=number / 5, detail=f"{number}")
                await self.save()
            machine.succeed(self.record, name, output="a@1", metrics={}, reused=False, now=1)
            if name != STEPS[-1]:
                await self.save()
        self.record.state = pb.RUN_STATE_SUCCEEDED
        await self.save()


async def watched(redis: Redis, rng: random.Random, began: asyncio.Event) -> list[pb.Run]:
    """What a client sees whose watch breaks after some messages, or in the middle of waiting.
    began: set when it has seen the run as it is."""
    feed = ChangeFeed(redis, redis_keys.run_events())
    tools: Any = SimpleNamespace()
    rpc = RunServicer(RunRecords(redis), feed, tools, Pages("s" * 32))
    seen: list[pb.Run] = []
    token = ""
    while not seen or seen[-1].status.state not in machine.ENDED:
        call = rpc.WatchRun(pb.WatchRunRequest(name="runs/r", resume_token=token), Caller())
        try:
            for _ in range(rng.randint(1, 3)):
                message = await anext(call)
                seen.append(message.run)
                token = message.resume_token
                began.set()
        except StopAsyncIteration:
            break
        finally:
            await call.aclose()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0, 0.01))  # nobody watches meanwhile
    return seen


@pytest.mark.parametrize("seed", range(8))
async def test_each_state_is_told_once(
    redis_client: Redis, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChangeFeed, "PATIENCE_S", 0.002)  # looks again by itself, without the feed
    run = Run(redis_client)
    await run.begin()
    began = asyncio.Event()
    watching = asyncio.create_task(watched(redis_client, random.Random(seed), began))
    await asyncio.wait_for(began.wait(), PATIENCE_S)
    await run.live(random.Random(seed + 100))
    seen = await watching
    revisions = [one.status.revision for one in seen]
    assert revisions == sorted(set(revisions))
    told = [states(one.status) for one in seen]
    once = [state for number, state in enumerate(told) if number == 0 or state != told[number - 1]]
    assert once == run.was
    assert {one.spec.pipeline_yaml for one in seen} == {"name: r"}


async def test_the_log_holds_states_and_not_progress(redis_client: Redis) -> None:
    run = Run(redis_client)
    await run.begin()
    run.record.state = pb.RUN_STATE_RUNNING
    machine.begin(run.record, "s0", input_digest="d", job_id="j", now=1)
    for number in range(50):
        machine.advance(run.record, "s0", fraction=number / 50, detail=str(number))
        await run.save()
    kept = await run.records.after("r", 1)
    assert [(one.revision, one.steps[0].detail) for one in kept] == [(51, "49")]
    assert await run.records.after("r", 51) == []
    # A position that a restored record has not reached.
    assert [one.revision for one in await run.records.after("r", 99)] == [51]


@pytest.mark.parametrize("token", ["x", "-1", "1" * 30, "1-0", "٣"])
async def test_a_token_of_another_kind(redis_client: Redis, token: str) -> None:
    feed = ChangeFeed(redis_client, redis_keys.run_events())
    tools: Any = SimpleNamespace()
    rpc = RunServicer(RunRecords(redis_client), feed, tools, Pages("s" * 32))
    with pytest.raises(InvalidArgument, match="none of WatchRun's"):
        await anext(rpc.WatchRun(pb.WatchRunRequest(name="runs/r", resume_token=token), Caller()))
