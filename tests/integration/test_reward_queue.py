"""Reward tasks on the queue: one result each, whoever is killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.reward.service import build as build_reward
from plinth.shared.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from plinth.shared.redis_keys import QueueKeys
from plinth.shared.rewards import QUEUE, RewardTasks, rewards_queue
from plinth.shared.settings import load_settings
from plinth.tokenizer.service import build as build_tokenizer
from plinth.v1 import rewards_pb2 as pb
from plinth.v1.rewards_pb2_grpc import RewardServiceStub
from reward_stack import JUDGE, LEASE_S, Stack, ask, judge, refused, stack, stub
from rewards import of_text, reward_model, rule

__all__ = ["judge", "stack", "stub"]  # fixtures

PROCESS = Path(__file__).parent.parent / "reward_process.py"


@pytest.fixture
def tasks(stack: Stack) -> RewardTasks:
    return RewardTasks(stack.context.redis, "run-1")


async def test_a_task_gives_what_a_call_gives(
    stub: RewardServiceStub, tasks: RewardTasks, judge: Path
) -> None:
    request = ask([JUDGE, rule("short", "max_words", n=1)], [of_text("b", "a"), of_text("c d")])
    request.items[1].prompt_text = "a"
    assert await tasks.submit("t.1", request)
    assert not await tasks.submit("t.1", ask([JUDGE], [of_text("else", "a")]))
    got = await tasks.wait("t.1", timeout_s=PATIENCE_S)
    assert got == await stub.ScoreRewards(request)
    assert await tasks.result("t.1") == got
    many = [tasks.submit(f"m.{i}", ask([JUDGE], [of_text("b" * (i + 1), "a")])) for i in range(20)]
    assert all(await asyncio.gather(*many))
    answers = await asyncio.gather(*(tasks.wait(f"m.{i}", timeout_s=PATIENCE_S) for i in range(20)))
    assert len({answer.rewards[0].total for answer in answers}) == 20


async def test_a_wrong_task_is_a_dead_letter_and_its_waiter_is_told(
    stack: Stack, stub: RewardServiceStub, tasks: RewardTasks, tmp_path: Path
) -> None:
    await tasks.submit("wrong", ask([rule("a", "nonsense")], [of_text("b")]))
    told = await refused(tasks.wait("wrong", timeout_s=PATIENCE_S), InvalidArgument, "'nonsense'")
    assert told.reason == "RULE_UNKNOWN"
    folder = reward_model(tmp_path / "made" / "huge", spoil=3e38)
    stack.context.store.publish("huge", "reward", folder)
    bad = ask([pb.RewardSource(name="mine", model="huge")], [of_text("b", "a")])
    await tasks.submit("huge", bad)
    told = await refused(tasks.wait("huge", timeout_s=PATIENCE_S), DataLoss, "source 'mine' gives ")
    assert told.reason == "REWARD_NOT_FINITE"
    queue = rewards_queue(stack.context.redis)
    await queue.add("garbage", b"\xff\xff")
    await refused(tasks.wait("garbage", timeout_s=PATIENCE_S), InvalidArgument, "no RewardTask")
    dead = {letter.id: letter for letter in await queue.dead_letters()}
    assert set(dead) == {"wrong", "huge", "garbage"}
    assert all(letter.attempts == 1 for letter in dead.values())
    await refused(tasks.wait("never", timeout_s=PATIENCE_S), NotFound, "'never'")


async def test_nobody_there_is_a_deadline_and_a_cancelled_task_says_so(tasks: RewardTasks) -> None:
    await tasks.submit("waits", ask([rule("a", "lower_case")], [of_text("b")]))
    await refused(tasks.wait("waits", timeout_s=0.2), DeadlineExceeded, "0.2 s")
    assert await tasks.cancel("waits")
    await refused(tasks.wait("waits", timeout_s=PATIENCE_S), Cancelled, "cancelled")


async def test_a_tokenizer_that_is_away_costs_an_attempt_not_the_task(
    stack: Stack, stub: RewardServiceStub, tasks: RewardTasks, judge: Path
) -> None:
    context, tokenizer = stack.parts.pop(0)
    await tokenizer.stop(0)
    request = ask([JUDGE], [of_text("b", "a")])
    await refused(stub.ScoreRewards(request), Unavailable, "tokenizer")
    await tasks.submit("patient", request)
    queue = rewards_queue(context.redis)
    await until(lambda: tried(queue, "patient"))
    await stack.add("tokenizer", build_tokenizer)
    assert (await tasks.wait("patient", timeout_s=PATIENCE_S)).rewards[0].HasField("total")
    await context.close()


async def tried(queue: Any, id: str) -> bool:
    state = await queue.find(id)
    return state.attempts >= 1 and "UNAVAILABLE" in state.reason


async def until(holds: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
    """`holds` looks at other processes, which set no event here."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_the_end_of_a_task_is_announced_not_looked_for(
    stub: RewardServiceStub, tasks: RewardTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plinth.shared import rewards as module

    monkeypatch.setattr(module, "_LOOK_S", 60.0)
    await tasks.submit("t", slow("0.5"))
    assert (await tasks.wait("t", timeout_s=PATIENCE_S)).rewards[0].total == 1


async def test_redis_goes_and_comes_back(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    settings = {"lease_s": LEASE_S, "tasks": 1}
    stack = Stack(load_settings(data_dir=tmp_path, redis_url=server.start(), reward=settings))
    try:
        await stack.add("reward", build_reward)
        tasks = RewardTasks(stack.context.redis, "run-1")
        queue = rewards_queue(stack.context.redis, lease_s=LEASE_S)
        await tasks.submit("t", slow("1"))
        await tasks.submit("u", slow("0"))
        waiting = asyncio.create_task(tasks.wait("t", timeout_s=PATIENCE_S))
        await until(lambda: leased(queue, "t"))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(server.start)
        assert (await waiting).rewards[0].total == 1
        assert (await tasks.wait("u", timeout_s=PATIENCE_S)).rewards[0].total == 1
        assert (await queue.inspect()).dead == 0
    finally:
        await stack.stop()
        server.stop()


class Replica:
    """A reward replica in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, stack: Stack, redis_url: str) -> Replica:
        made = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                str(PROCESS),
                str(stack.settings.data_dir),
                redis_url,
                str(LEASE_S),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        )
        await made.says("ready\n")
        return made

    async def says(self, words: str) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while words not in (line := (await self.process.stdout.readline()).decode()):
                assert line, "it ended"

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


def slow(gate: str) -> pb.ScoreRewardsRequest:
    """In work for some seconds: the answer sleeps in its sandbox."""
    code = f"import time\ndef f():\n    time.sleep({gate})\n    return 1"
    return ask([rule("code", "code_tests")], [of_text(code, tests=["assert f() == 1"])])


async def leased(queue: Any, id: str) -> bool:
    return (await queue.find(id)).state == "leased"


async def fence_of(stack: Stack, id: str) -> int:
    """Of whoever stored the result."""
    return int(await stack.context.redis.hget(QueueKeys(QUEUE).result(id), "fence"))


async def test_a_killed_replica_loses_nothing(
    stack: Stack, redis_server: str, tasks: RewardTasks
) -> None:
    queue = rewards_queue(stack.context.redis, lease_s=LEASE_S)
    doomed = await Replica.start(stack, redis_server)
    await tasks.submit("t", slow("3"))
    for i in range(5):
        await tasks.submit(f"next.{i}", ask([rule("a", "lower_case")], [of_text("b")]))
    await until(lambda: leased(queue, "t"))
    await doomed.kill()
    assert await tasks.result("t") is None
    await stack.add("reward", build_reward)
    assert (await tasks.wait("t", timeout_s=PATIENCE_S)).rewards[0].total == 1
    for i in range(5):
        assert (await tasks.wait(f"next.{i}", timeout_s=PATIENCE_S)).rewards[0].total == 1
    assert (await queue.find("t")).state == "completed"
    assert await fence_of(stack, "t") > 1  # 1 was the killed one's
    assert (await queue.inspect()).dead == 0


async def test_a_replica_that_stood_still_cannot_store_a_second_result(
    stack: Stack, redis_server: str, tasks: RewardTasks
) -> None:
    queue = rewards_queue(stack.context.redis, lease_s=LEASE_S)
    frozen = await Replica.start(stack, redis_server)
    try:
        await tasks.submit("t", slow("1"))
        await until(lambda: leased(queue, "t"))
        frozen.process.send_signal(signal.SIGSTOP)
        await stack.add("reward", build_reward)
        first = await tasks.wait("t", timeout_s=PATIENCE_S)
        fence = await fence_of(stack, "t")
        assert fence > 1  # 1 is that of the one that stands still
        frozen.process.send_signal(signal.SIGCONT)
        await frozen.says("went on elsewhere")
        assert await fence_of(stack, "t") == fence
        assert await tasks.result("t") == first
    finally:
        await frozen.kill()


async def test_a_drained_replica_finishes_what_it_holds(stack: Stack, tasks: RewardTasks) -> None:
    await stack.add("reward", build_reward)
    queue = rewards_queue(stack.context.redis, lease_s=LEASE_S)
    await tasks.submit("t", slow("1"))
    await until(lambda: leased(queue, "t"))
    context, running = stack.parts.pop()
    assert (await running.front.load()).ratio == 1 / context.settings.reward.tasks
    await running.stop(20)
    await context.close()
    assert (await tasks.result("t")).rewards[0].total == 1
    assert await fence_of(stack, "t") == 1


async def test_a_drain_without_time_gives_the_task_back(stack: Stack, tasks: RewardTasks) -> None:
    await stack.add("reward", build_reward)
    queue = rewards_queue(stack.context.redis, lease_s=LEASE_S)
    await tasks.submit("t", slow("8"))
    await until(lambda: leased(queue, "t"))
    context, running = stack.parts.pop()
    await running.stop(0.1)
    await context.close()
    found = await queue.find("t")
    assert (found.state, found.attempts) == ("waiting", 0)
