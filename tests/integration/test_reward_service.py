"""The reward stage over real gRPC, Redis and store; the tokenizer beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import transformers

from plinth.gateway.proxy import proxied_services
from plinth.reward.forward import ScoringModel
from plinth.shared.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from plinth.shared.rpc.server import GrpcServer
from plinth.v1 import rewards_pb2 as pb
from plinth.v1.rewards_pb2_grpc import RewardServiceStub
from reward_stack import JUDGE, Stack, ask, judge, refused, stack, stub
from rewards import of_ids, of_messages, of_text, reward_model, rule

__all__ = ["judge", "stack", "stub"]  # fixtures


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
    assert rendered[-2] == theirs.eos_token_id  # ChatML's newline behind it is no part of an answer
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
    wanted = truth.scores([(*prompt, *response), rendered[:-1], (*opened, *response)])
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
    checks = [{"kind": "lower_case"}, {"kind": "bullets", "n": 1}]
    item = of_text("b", "a", reference="B", checks=checks, tests=["assert True", "assert 0"])
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
    assert (told.field, told.reason) == ("sources.0.rule", "RULE_UNKNOWN")
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
