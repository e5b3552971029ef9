"""The best of several answers by gRPC: what REST gives for the same request, in messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gateway_stages import Said, Shard, Stack, running_stack
from patience import PATIENCE_S
from plinth.reward.service import build as build_reward
from plinth.shared.api.structs import struct
from plinth.shared.stage import RunningStage, StageContext, run_stage
from plinth.v1 import chat_pb2
from plinth.v1 import generation_pb2 as pb
from plinth.v1.generation_pb2_grpc import GenerationServiceStub
from rewards import reward_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = "3 + 4?"
PATTERN = r"answer is (-?\d+)"
ANSWERS = [
    Said.evenly("I think the answer is 8.", -0.5),
    Said.evenly("The answer is 7, since four and three are seven.", -0.2),
    Said.evenly("Who knows, really?", -0.9),
    Said.evenly("the answer is 8", -0.75),
]
RULES: list[dict[str, Any]] = [
    {"rule": {"kind": "contains", "phrases": ["7"]}},
    {"rule": {"kind": "max_words", "n": 4}, "weight": 0.5},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("best-of")
    async with running_stack(
        folder, redis_server, first=Shard(says=ANSWERS), patience_s=0.5
    ) as running:
        context = await StageContext.open(running.settings, stage="reward")
        judge = reward_model(tmp_path_factory.mktemp("made") / "judge")
        await asyncio.to_thread(context.store.publish, "judge", "reward", judge)
        reward: RunningStage = await run_stage(context, build_reward(context))
        yield running
        await reward.stop(10)
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def stub(stack: Stack) -> AsyncIterator[GenerationServiceStub]:
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        yield GenerationServiceStub(channel)


def key(stack: Stack) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {stack.key}"),)


def request(best_of: int = 4, n: int = 4, **select: Any) -> pb.ChatRequest:
    """`select` as REST has it."""
    asked = pb.ChatRequest(
        model="chat",
        messages=[chat_pb2.ChatMessage(role="user", content=ASK)],
        options=pb.GenerationOptions(n=n, sampling={"seed": 1}),
        best_of=best_of,
    )
    if select:
        rules = [
            pb.WeightedRule(rule=struct(one["rule"]), weight=one.get("weight"))
            for one in select.pop("rules", [])
        ]
        by = pb.SelectBy.Value(f"SELECT_BY_{select.pop('by').upper()}")
        weights = pb.VoteWeights.Value(
            f"VOTE_WEIGHTS_{select.pop('weights', 'unspecified').upper()}"
        )
        asked.select.CopyFrom(pb.Select(by=by, rules=rules, weights=weights, **select))
    return asked


@pytest.mark.parametrize(
    "select",
    [
        {},
        {"by": "likelihood"},
        {"by": "reward", "rules": RULES},
        {"by": "reward", "rules": RULES, "reward": "judge"},
        {"by": "vote", "pattern": PATTERN},
        {"by": "vote", "pattern": PATTERN, "weights": "likelihood"},
        {"by": "vote", "pattern": PATTERN, "weights": "reward", "rules": RULES},
    ],
)
async def test_it_is_what_rest_gives(
    stack: Stack, stub: GenerationServiceStub, select: dict[str, Any]
) -> None:
    body: dict[str, Any] = {
        "model": "chat",
        "messages": [{"role": "user", "content": ASK}],
        "n": 4,
        "best_of": 4,
        "seed": 1,
        **({"select": select} if select else {}),
    }
    headers = {"authorization": f"Bearer {stack.key}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=PATIENCE_S) as http:
        rest = (await http.post("/v1/chat/completions", json=body)).json()
    answer = await stub.Chat(request(**select), metadata=key(stack))
    assert [c.message.content for c in answer.choices] == [
        c["message"]["content"] for c in rest["choices"]
    ]
    assert [_note(choice.selected) for choice in answer.choices] == [
        {**c["plinth"], "score": pytest.approx(c["plinth"]["score"])} for c in rest["choices"]
    ]
    assert answer.usage.completion_tokens == rest["usage"]["completion_tokens"]
    assert answer.usage.completion_tokens == sum(len(said.logprobs) for said in ANSWERS)
    for choice in answer.choices:
        said = ANSWERS[choice.selected.sample]
        assert [t.raw_logprob for t in choice.tokens] == pytest.approx(list(said.logprobs))


def _note(selected: pb.Selected) -> dict[str, Any]:
    """As REST has it under "plinth"."""
    by = pb.SelectBy.Name(selected.by).removeprefix("SELECT_BY_").lower()
    note: dict[str, Any] = {"sample": selected.sample, "by": by, "score": selected.score}
    if by == "reward":
        note["parts"] = {part.source: part.value for part in selected.parts}
        note["reasons"] = {part.source: part.reason for part in selected.parts if part.reason}
    if by == "vote":
        note["answer"] = selected.answer if selected.HasField("answer") else None
        note["votes"], note["weight"] = selected.votes, selected.weight
    return note


async def test_a_completion_has_it_too(stack: Stack, stub: GenerationServiceStub) -> None:
    asked = pb.CompleteRequest(model="chat", prompt="3 + 4 =", best_of=3)
    asked.options.sampling.seed = 1
    answer = await stub.Complete(asked, metadata=key(stack))
    (choice,) = answer.choices
    assert (choice.text, choice.selected.sample) == (ANSWERS[1].text, 1)
    assert choice.selected.by == pb.SELECT_BY_LIKELIHOOD
    assert choice.selected.score == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("asked", "field", "reason"),
    [
        (request(best_of=0, by="likelihood"), "select", "INVALID_SELECT"),
        (request(best_of=2, n=3), "best_of", "INVALID_BEST_OF"),
        (request(best_of=9), "best_of", "INVALID_VALUE"),
        (request(by="vote"), "select.pattern", "INVALID_SELECT"),
        (request(by="vote", pattern=r"\d+"), "select.pattern", "INVALID_PATTERN"),
        (request(by="reward"), "select.reward", "INVALID_SELECT"),
        (request(by="reward", reward="chat"), "select.reward", "ARTIFACT_NOT_FOUND"),
        (
            request(by="reward", rules=[{"rule": {"kind": "max_words", "n": 1}, "weight": 1e9}]),
            "select.rules.0.weight",
            "INVALID_VALUE",
        ),
        (
            request(by="reward", rules=[{"rule": {"kind": "short"}}]),
            "select.rules.0.rule",
            "RULE_UNKNOWN",
        ),
        (request(by="likelihood", reward="judge"), "select.reward", "INVALID_SELECT"),
    ],
)
async def test_what_is_wrong_is_said_by_the_requests_own_names(
    stack: Stack, stub: GenerationServiceStub, asked: pb.ChatRequest, field: str, reason: str
) -> None:
    before = len(stack.shard.requests)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Chat(asked, metadata=key(stack))
    status = rpc_status.from_call(caught.value)
    assert status is not None
    told: dict[str, str] = {}
    for detail in status.details:
        for kind in (error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()):
            if detail.Unpack(kind):
                if isinstance(kind, error_details_pb2.ErrorInfo):
                    told["reason"] = kind.reason
                else:
                    told["field"] = kind.field_violations[0].field
    assert told["reason"] == reason, status
    assert told.get("field", field) == field
    assert len(stack.shard.requests) == before
