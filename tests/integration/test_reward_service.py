"""The reward stage over real gRPC, Redis, store and processes; the tokenizer beside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import transformers

from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.gateway.proxy import proxied_services
from plinth.reward.forward import ScoringModel
from plinth.reward.service import build as build_reward
from plinth.shared.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
    Unavailable,
)
from plinth.shared.identity import Principal
from plinth.shared.keys import QueueKeys
from plinth.shared.rewards import QUEUE, RewardTasks, rewards_queue
from plinth.shared.rpc.channel import open_channel
from plinth.shared.rpc.server import GrpcServer
from plinth.shared.rpc.status import from_rpc_error
from plinth.shared.settings import Settings, load_settings
from plinth.shared.stage import RunningStage, StageContext, run_stage
from plinth.tokenizer.service import build as build_tokenizer
from plinth.v1 import reward_pb2 as pb
from plinth.v1.reward_pb2_grpc import RewardServiceStub
from rewards import of_ids, of_messages, of_text, reward_model, rule

PROCESS = Path(__file__).parent.parent / "reward_process.py"
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
    with pytest.raises((grpc.RpcError, PlinthError)) as caught:
        await call
    error = caught.value
    told = from_rpc_error(error) if isinstance(error, grpc.RpcError) else error
    assert isinstance(told, kind), told
    assert words in told.message
    return told


JUDGE = pb.RewardSource(name="judge", model="judge")


async def test_text_messages_and_ids_give_one_score(
    stack: Stack, stub: RewardServiceStub, judge: Path
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(judge)
    truth = ScoringModel(judge, "cpu")
    turns = [("system", "be kind"), ("user", "hi")]
    as_dicts = [{"role": r, "content": c} for r, c in turns]
    rendered = theirs.apply_chat_template(
        [*as_dicts, {"role": "assistant", "content": "hello"}], return_dict=False
    )
    opened = theirs.apply_chat_template(as_dicts, add_generation_prompt=True, return_dict=False)
    prompt, response = theirs.encode("2 + 2 = "), theirs.encode("4, of course")
    mixed = of_messages("", *turns)
    mixed.response_tokens.ids.extend(response)
    answer = await stub.ScoreRewards(
        ask(
            [JUDGE],
            [
                of_text("4, of course", "2 + 2 = "),
                of_ids(prompt, response),
                of_messages("hello", *turns),
                mixed,
            ],
            tokenizer="judge",
        )
    )
    wanted = truth.scores([(*prompt, *response), rendered, (*opened, *response)])
    got = [reward.total for reward in answer.rewards]
    assert got == [wanted[0], wanted[0], wanted[1], wanted[2]]
    record = stack.context.store.get("judge")
    assert answer.models[0] == pb.RewardModelUsed(
        source="judge", artifact="judge@1", digest=record.digest
    )


async def test_several_sources_are_weighed_and_each_is_told(
    stack: Stack, stub: RewardServiceStub, judge: Path
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(judge)
    (raw,) = ScoringModel(judge, "cpu").scores([theirs.encode("ab")])
    sources = [
        pb.RewardSource(
            name="judge", model="judge", weight=0.5, scale=2, shift=1, clip_low=-1, clip_high=1
        ),
        rule("short", "max_words", n=3),
        rule("code", "code_tests"),
        rule("asked", "checks", mode="share"),
        rule("right", "exact_answer"),
        rule("form", "regex", pattern="^[a-z]+$"),
    ]
    sources[1].weight = -2
    checks = json.dumps([{"kind": "lower_case"}, {"kind": "bullets", "n": 1}])
    item = of_text("b", "a", reference="B", checks_json=checks, tests=["assert True", "assert 0"])
    (reward,) = (await stub.ScoreRewards(ask(sources, [item]))).rewards
    values = [part.value for part in reward.parts]
    assert values == [min(max(2 * raw + 1, -1), 1), 1, 0, 0.5, 1, 1]
    assert reward.parts[0].raw == raw
    assert [part.source for part in reward.parts] == [source.name for source in sources]
    assert [part.weight for part in reward.parts] == [0.5, -2, 1, 1, 1, 1]
    assert reward.total == pytest.approx(0.5 * values[0] - 2 + 0 + 0.5 + 1 + 1)
    assert "1 of 2 tests" in reward.parts[2].reason
    assert "bullets" in reward.parts[3].reason


async def test_rules_read_ids_as_text(stub: RewardServiceStub, judge: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(judge)
    ids = [*theirs.encode("no Comma"), theirs.eos_token_id]
    sources = [rule("low", "lower_case"), rule("end", "ends_with", text="Comma")]
    sources += [rule("tokens", "length", unit="tokens", at_most=9)]
    (reward,) = (await stub.ScoreRewards(ask(sources, [of_ids([], ids)], "judge"))).rewards
    assert [part.value for part in reward.parts] == [0, 1, 1]


async def test_what_cannot_be_scored_is_told_item_by_item(
    stub: RewardServiceStub, judge: Path
) -> None:
    items = [of_text("x" * 200, "a"), of_text("", "a"), of_text("b", "a"), of_ids([5], [])]
    rewards = (await stub.ScoreRewards(ask([JUDGE], items))).rewards
    assert [reward.HasField("total") for reward in rewards] == [False, False, True, False]
    assert rewards[0].parts[0].reason == "201 tokens; the reward model sees at most 128"
    assert rewards[1].parts[0].reason == rewards[3].parts[0].reason == "the response is empty"


async def test_crowded_calls_get_what_lonely_ones_get(stub: RewardServiceStub, judge: Path) -> None:
    items = [of_text("y" * (i % 7 + 1), "x" * (i + 1)) for i in range(60)]
    lonely = [(await stub.ScoreRewards(ask([JUDGE], [item]))).rewards[0].total for item in items]
    calls = [stub.ScoreRewards(ask([JUDGE], items[i : i + 4])) for i in range(0, 60, 4)]
    crowded = [r.total for answer in await asyncio.gather(*calls) for r in answer.rewards]
    assert crowded == lonely


async def test_bad_requests_are_refused_with_their_field(
    stack: Stack, stub: RewardServiceStub, judge: Path, tmp_path: Path
) -> None:
    store = stack.context.store
    await refused(
        stub.ScoreRewards(ask([pb.RewardSource(name="m", model="nope")], [of_text("b", "a")])),
        NotFound,
        "no artifact is called 'nope'",
    )
    told = await refused(
        stub.ScoreRewards(ask([rule("x", "nonsense")], [of_text("b")])), InvalidArgument, "nonsense"
    )
    assert (told.field, told.reason) == ("sources.0.rule_json", "RULE_UNKNOWN")
    told = await refused(
        stub.ScoreRewards(ask([JUDGE], [of_text("b", "a"), of_ids([1], [5000])])),
        InvalidArgument,
        "id 5000 is not of judge@1",
    )
    assert told.field == "items.1"
    # ids of another vocabulary mean something else
    other = tmp_path / "made" / "other"
    reward_model(other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    store.publish("other", "model", other)
    await refused(
        stub.ScoreRewards(ask([JUDGE], [of_ids([1], [2])], "other")),
        InvalidArgument,
        "ids are of other@1",
    )


async def test_a_score_that_is_no_number_is_a_typed_error(
    stack: Stack, stub: RewardServiceStub, tmp_path: Path
) -> None:
    store = stack.context.store
    for name, spoil in (("nan", float("nan")), ("huge", 3e38), ("flat", 0.0)):
        store.publish(name, "reward", reward_model(tmp_path / "made" / name, spoil=spoil))
    told = await refused(
        stub.ScoreRewards(ask([pb.RewardSource(name="mine", model="nan")], [of_text("b", "a")])),
        DataLoss,
        "source 'mine': nan@1 can't be opened",
    )
    assert "NaN" in told.message
    # Weights that are numbers, and a score that is none.
    source = pb.RewardSource(name="mine", model="huge", weight=0)
    told = await refused(
        stub.ScoreRewards(ask([rule("r", "lower_case"), source], [of_text("b", "a")])),
        DataLoss,
        "source 'mine' gives ",
    )
    assert "for item 0; a reward must be a finite number" in told.message
    assert told.metadata == {"source": "mine", "item": "0"}
    flat = pb.RewardSource(name="flat", model="flat")
    answer = await stub.ScoreRewards(ask([flat], [of_text("b", "a"), of_text("c", "a")]))
    assert [reward.total for reward in answer.rewards] == [0, 0]


async def test_sources_can_be_checked_alone(
    stack: Stack, stub: RewardServiceStub, judge: Path
) -> None:
    checked = await stub.CheckSources(
        pb.CheckSourcesRequest(sources=[rule("a", "lower_case"), JUDGE])
    )
    digest = stack.context.store.get("judge").digest
    assert list(checked.models) == [
        pb.RewardModelUsed(source="judge", artifact="judge@1", digest=digest)
    ]
    missing = pb.RewardSource(name="m", model="nope")
    await refused(stub.CheckSources(pb.CheckSourcesRequest(sources=[missing])), NotFound, "nope")
    await refused(stub.CheckSources(pb.CheckSourcesRequest()), InvalidArgument, "0 sources")


async def test_who_may_call_here_and_at_the_front_door(
    stack: Stack, stub: RewardServiceStub
) -> None:
    request = ask([rule("a", "lower_case")], [of_text("b")])
    reward = stack.parts[-1][1]
    async with stack.channel(reward.address, "reward", ("jobs",)) as channel:
        await refused(RewardServiceStub(channel).ScoreRewards(request), PermissionDenied, "rewards")
    door = GrpcServer(
        proxied_services(stack.context.clients),
        stage="gateway",
        settings=stack.settings,
        token=stack.context.token,
    )
    port = await door.start()
    await door.set_ready(True)
    async with stack.channel(f"127.0.0.1:{port}", "gateway", ("rewards",)) as channel:
        answer = await RewardServiceStub(channel).ScoreRewards(request)
        assert answer.rewards[0].total == 1
        bad = ask([rule("a", "nonsense")], [of_text("b")])
        await refused(RewardServiceStub(channel).ScoreRewards(bad), InvalidArgument, "nonsense")
    async with stack.channel(f"127.0.0.1:{port}", "gateway", ("jobs",)) as channel:
        await refused(RewardServiceStub(channel).ScoreRewards(request), PermissionDenied, "rewards")
    await door.stop(1)


# -- the queue -----------------------------------------------------------------------------


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
    got = await tasks.wait("t.1", timeout_s=20)
    assert got == await stub.ScoreRewards(request)
    assert await tasks.result("t.1") == got
    many = [tasks.submit(f"m.{i}", ask([JUDGE], [of_text("b" * (i + 1), "a")])) for i in range(20)]
    assert all(await asyncio.gather(*many))
    answers = await asyncio.gather(*(tasks.wait(f"m.{i}", timeout_s=20) for i in range(20)))
    assert len({answer.rewards[0].total for answer in answers}) == 20


async def test_a_wrong_task_is_a_dead_letter_and_its_waiter_is_told(
    stack: Stack, stub: RewardServiceStub, tasks: RewardTasks, tmp_path: Path
) -> None:
    await tasks.submit("wrong", ask([rule("a", "nonsense")], [of_text("b")]))
    told = await refused(tasks.wait("wrong", timeout_s=20), InvalidArgument, "'nonsense'")
    assert told.reason == "RULE_UNKNOWN"
    folder = reward_model(tmp_path / "made" / "huge", spoil=3e38)
    stack.context.store.publish("huge", "reward", folder)
    bad = ask([pb.RewardSource(name="mine", model="huge")], [of_text("b", "a")])
    await tasks.submit("huge", bad)
    told = await refused(tasks.wait("huge", timeout_s=20), DataLoss, "source 'mine' gives ")
    assert told.reason == "REWARD_NOT_FINITE"
    queue = rewards_queue(stack.context.redis)
    await queue.add("garbage", b"\xff\xff")
    await refused(tasks.wait("garbage", timeout_s=20), InvalidArgument, "no RewardTask")
    dead = {letter.id: letter for letter in await queue.dead_letters()}
    assert set(dead) == {"wrong", "huge", "garbage"}
    assert all(letter.attempts == 1 for letter in dead.values())
    await refused(tasks.wait("never", timeout_s=1), NotFound, "'never'")


async def test_nobody_there_is_a_deadline_and_a_cancelled_task_says_so(tasks: RewardTasks) -> None:
    await tasks.submit("waits", ask([rule("a", "lower_case")], [of_text("b")]))
    await refused(tasks.wait("waits", timeout_s=0.2), DeadlineExceeded, "0.2 s")
    assert await tasks.cancel("waits")
    await refused(tasks.wait("waits", timeout_s=1), Cancelled, "cancelled")


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
    assert (await tasks.wait("patient", timeout_s=30)).rewards[0].HasField("total")
    await context.close()


async def tried(queue: Any, id: str) -> bool:
    state = await queue.find(id)
    return state.attempts >= 1 and "UNAVAILABLE" in state.reason


async def until(holds: Callable[[], Any], seconds: float = 30) -> None:
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
    assert (await tasks.wait("t", timeout_s=20)).rewards[0].total == 1


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
        waiting = asyncio.create_task(tasks.wait("t", timeout_s=60))
        await until(lambda: leased(queue, "t"))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(server.start)
        assert (await waiting).rewards[0].total == 1
        assert (await tasks.wait("u", timeout_s=60)).rewards[0].total == 1
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
        async with asyncio.timeout(30):
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
    assert (await tasks.wait("t", timeout_s=30)).rewards[0].total == 1
    for i in range(5):
        assert (await tasks.wait(f"next.{i}", timeout_s=30)).rewards[0].total == 1
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
        first = await tasks.wait("t", timeout_s=30)
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
