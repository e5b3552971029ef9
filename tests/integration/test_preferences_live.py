"""Live answers with consent become preference tasks, word for word, never in an answer's way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client import REGISTRY

from gateway_stages import Stack, running_stack, script_text
from patience import PATIENCE_S
from plinth.gateway.preferences.live import consents, drawn
from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.corpus import read_split
from plinth.v1 import chat_pb2, generation_pb2, generation_pb2_grpc, sampling_pb2
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc
from preference_stages import PreferenceStack, running_preferences

LIVE = "collections/live"
CONSENT = {"x-plinth-consent": "preferences"}


@pytest.fixture
async def stack(
    tmp_path: Path, redis_server: str, redis_client: object
) -> AsyncIterator[PreferenceStack]:
    async with running_preferences(tmp_path, redis_server, preference_sampling_rate=1.0) as running:
        yield running


def body(seed: int = 3, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Sag es"}]
    return {"model": "chat", "messages": messages, "seed": seed, "max_tokens": 60, **fields}


def outcomes(outcome: str) -> float:
    name = "plinth_live_preferences_total"
    return REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0


async def tasks(stack: PreferenceStack, count: int) -> list[dict[str, Any]]:
    """The live tasks once there are `count` that can be judged."""
    async with stack.client() as client, asyncio.timeout(PATIENCE_S):
        while True:
            answer = await client.get("/v1/preferences/tasks?collection=live")
            listed = answer.json()["tasks"]
            if len([one for one in listed if one["state"] == "open"]) >= count:
                break
            await asyncio.sleep(0.02)
        found = []
        for one in listed:
            path = f"/v1/preferences/tasks/{one['task_id']}?collection=live"
            found.append((await client.get(path)).json()["task"])
        return found


async def test_what_the_client_saw_is_what_is_judged(stack: PreferenceStack) -> None:
    async with stack.client() as client:
        answer = await client.post(
            "/v1/chat/completions",
            json=body(),
            headers={**CONSENT, "x-request-id": "req-1"},
        )
        seen = answer.json()["choices"][0]["message"]["content"]
        assert seen == script_text(3, 0, 60)
        assert answer.json()["choices"][0]["finish_reason"] == "length"
    (task,) = await tasks(stack, 1)
    assert (task["origin"], task["request_id"]) == ("live", "req-1")
    assert task["prompt"] == [{"role": "user", "content": "Sag es"}]
    mine, other = task["responses"]
    assert (mine["text"], mine["model"], mine["sampling"]["seed"]) == (seen, "chat@1", 3)
    assert other["text"] == script_text(other["sampling"]["seed"], 0, 60)
    assert other["text"] != seen
    assert (other["sampling"]["temperature"], other["sampling"]["max_tokens"]) == (1.0, 60)
    assert mine["cut_off"] is other["cut_off"] is True


async def test_a_stream_and_several_samples(stack: PreferenceStack) -> None:
    async with stack.client() as client:
        seen = ""
        async with client.stream(
            "POST", "/v1/chat/completions", json=body(5, stream=True), headers=CONSENT
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        seen += choice["delta"].get("content") or ""
        (task,) = await tasks(stack, 1)
        assert task["responses"][0]["text"] == seen == script_text(5, 0, 60)
        answer = await client.post("/v1/chat/completions", json=body(n=3), headers=CONSENT)
        several = [choice["message"]["content"] for choice in answer.json()["choices"]]
    found = await tasks(stack, 2)
    three = next(one for one in found if len(one["responses"]) == 3)
    assert [one["text"] for one in three["responses"]] == several
    assert [one["sampling"]["sample_index"] for one in three["responses"]] == [0, 1, 2]


async def test_over_grpc(stack: PreferenceStack) -> None:
    key = ("authorization", f"Bearer {stack.stack.key}")
    request = generation_pb2.StreamChatRequest(
        model="chat",
        messages=[chat_pb2.ChatMessage(role="user", content="hi")],
        options=generation_pb2.GenerationOptions(
            sampling=sampling_pb2.SamplingParams(seed=4, max_tokens=30)
        ),
    )
    async with grpc.aio.insecure_channel(stack.stack.grpc_address) as channel:
        chat = generation_pb2_grpc.GenerationServiceStub(channel).StreamChat
        seen = "".join([m.text async for m in chat(request, metadata=(key, *CONSENT.items()))])
        (task,) = await tasks(stack, 1)
        assert task["responses"][0]["text"] == seen == script_text(4, 0, 30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in chat(request, metadata=(key, ("x-plinth-consent", "everything"))):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        # From the live answer to a judgement, through the door.
        door = rpc.PreferenceServiceStub(channel)
        ask = pb.LeasePreferenceTaskRequest(parent=LIVE, annotator="ann")
        lease = (await door.LeasePreferenceTask(ask, metadata=(key,))).lease
        best = next(one for one in lease.responses if one.text == seen).response_id
        other = next(one for one in lease.responses if one.text != seen).response_id
        judged = await door.CreateJudgement(said(lease, [best, other]), metadata=(key,))
        assert list(judged.judgement.spec.shown) == [one.response_id for one in lease.responses]
        report = await door.GetPreferenceReport(
            pb.GetPreferenceReportRequest(name=f"{LIVE}/report"), metadata=(key,)
        )
        assert report.report.revision == 1


def said(lease: pb.PreferenceLease, order: list[str]) -> pb.CreateJudgementRequest:
    ranking = [pb.ResponseTier(response_ids=[one]) for one in order]
    spec = pb.JudgementSpec(annotator=lease.annotator, ranking=ranking)
    return pb.CreateJudgementRequest(
        parent=lease.task, judgement=pb.Judgement(spec=spec), fence=lease.fence
    )


async def test_from_live_answers_to_pairs(stack: PreferenceStack) -> None:
    """Eight live answers, two annotators at once who prefer what sorts first, and an artifact of
    pairs that the trainer reads: word for word what clients saw."""
    async with stack.client() as client:
        seen = set()
        for seed in range(8):
            answer = await client.post("/v1/chat/completions", json=body(seed), headers=CONSENT)
            seen.add(answer.json()["choices"][0]["message"]["content"])
    await tasks(stack, 8)
    held: dict[str, str] = {}
    judged: list[tuple[str, str]] = []
    key = (("authorization", f"Bearer {stack.stack.key}"),)

    async def annotate(door: Any, name: str) -> None:
        while True:
            try:
                ask = pb.LeasePreferenceTaskRequest(parent=LIVE, annotator=name)
                lease = (await door.LeasePreferenceTask(ask, metadata=key)).lease
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND
                return
            assert lease.task not in held
            held[lease.task] = name
            order = sorted(lease.responses, key=lambda one: one.text)
            del held[lease.task]
            await door.CreateJudgement(
                said(lease, [one.response_id for one in order]), metadata=key
            )
            judged.append((lease.task, name))

    async with grpc.aio.insecure_channel(stack.stack.grpc_address) as channel:
        door = rpc.PreferenceServiceStub(channel)
        await asyncio.gather(annotate(door, "ann"), annotate(door, "bob"))
        assert len({one for one, _ in judged}) == len(judged) == 8
        made = await door.PublishPairs(
            pb.PublishPairsRequest(
                parent=LIVE, artifact_id="live-pairs", min_pair_count=8, validation_fraction=0
            ),
            metadata=key,
        )
    assert made.pair_count == 8
    folder = stack.store.fetch(made.artifact.name.removeprefix("artifacts/"))
    documents = list(read_split(folder, "train"))
    assert {document.messages[0] for document in documents} == {("user", "Sag es")}
    texts = [(document.messages[-1][1], document.rejected) for document in documents]
    assert all(chosen < str(rejected) for chosen, rejected in texts)
    assert all(seen & set(pair) for pair in texts)
    assert {document.source for document in documents} == {"human"}


async def test_without_consent_nothing_is_kept(stack: PreferenceStack) -> None:
    before = outcomes("recorded")
    async with stack.client() as client:
        await client.post("/v1/chat/completions", json=body())
        stopped = await client.post(
            "/v1/chat/completions", json=body(stop=["zzz"]), headers=CONSENT
        )
        assert stopped.status_code == 200
        # The best of several is no sample of the model, whose second answer would be one.
        best = await client.post("/v1/chat/completions", json=body(best_of=2), headers=CONSENT)
        assert best.status_code == 200
        refused = await client.post(
            "/v1/chat/completions", json=body(), headers={"x-plinth-consent": "preference"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "consent_unknown")
        # One with consent, so that there is something to wait for.
        await client.post("/v1/chat/completions", json=body(9), headers=CONSENT)
    found = await tasks(stack, 1)
    assert [one["responses"][0]["sampling"]["seed"] for one in found] == [9]
    assert outcomes("recorded") == before + 1


async def test_a_client_that_hangs_up_is_not_recorded(stack: PreferenceStack) -> None:
    stack.stack.shard.delay_s = 0.02
    async with stack.client() as client:
        async with client.stream(
            "POST", "/v1/chat/completions", json=body(stream=True), headers=CONSENT
        ) as answer:
            async for _ in answer.aiter_lines():
                break
        while not stack.stack.shard.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stack.stack.shard.delay_s = 0
        await client.post("/v1/chat/completions", json=body(8), headers=CONSENT)
    found = await tasks(stack, 1)
    assert [one["responses"][0]["sampling"]["seed"] for one in found] == [8]


async def test_a_coordinator_that_is_away_costs_nothing_but_the_task(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    before = outcomes("coordinator away")
    async with running_stack(tmp_path, redis_server, preference_sampling_rate=1.0) as bare:
        assert isinstance(bare, Stack)
        headers = {"authorization": f"Bearer {bare.key}", **CONSENT}
        async with httpx.AsyncClient(
            base_url=bare.url, headers=headers, timeout=PATIENCE_S
        ) as client:
            for seed in range(5):
                answer = await client.post("/v1/chat/completions", json=body(seed))
                text = answer.json()["choices"][0]["message"]["content"]
                assert text == script_text(seed, 0, 60)
        async with asyncio.timeout(PATIENCE_S):
            while outcomes("coordinator away") < before + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_full_queue_drops_and_counts() -> None:
    from plinth.gateway.preferences.live import QUEUE_LENGTH, LivePreferences
    from plinth.shared.identity import Principal

    never: Any = None  # asked
    live = LivePreferences(never, never, rate=1.0, rival="")
    before = outcomes("queue full")
    for index in range(QUEUE_LENGTH + 3):
        ask = pb.CreatePreferenceTaskRequest(task_id=str(index))
        live.hand_over(ask, Principal("t", "k", frozenset()), 0)
    assert outcomes("queue full") == before + 3
    stopped = outcomes("gateway stopped")
    await live.close()
    assert outcomes("gateway stopped") == stopped + QUEUE_LENGTH


def test_the_sample_is_fixed_by_the_request() -> None:
    ids = [f"request-{i}" for i in range(20_000)]
    sample = {one for one in ids if drawn(one, 0.1)}
    assert sample == {one for one in ids if drawn(one, 0.1)}
    assert abs(len(sample) / 20_000 - 0.1) < 4 * (0.09 / 20_000) ** 0.5
    assert sample < {one for one in ids if drawn(one, 0.2)}  # a higher rate only adds
    assert not any(drawn(one, 0.0) for one in ids)
    assert all(drawn(one, 1.0) for one in ids)


def test_consent_is_a_word_that_is_spelt_right() -> None:
    assert consents("preferences")
    assert consents(b"Preferences ")
    assert not consents(None)
    assert not consents("")
    with pytest.raises(InvalidArgument, match="'prefs' is not known"):
        consents("preferences, prefs")


async def test_the_second_answer_is_paid_for_or_not_made(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    from plinth.shared import redis_keys

    limits = {"tenant_tokens_per_minute": 100, "preference_sampling_rate": 1.0}
    async with running_preferences(tmp_path, redis_server, **limits) as stack:
        over = outcomes("over quota")
        headers = {**CONSENT, "authorization": f"Bearer {stack.stack.key}"}
        async with httpx.AsyncClient(
            base_url=stack.stack.url, headers=headers, timeout=PATIENCE_S
        ) as client:
            prompt = len("<user>Sag es\n<assistant>")
            answer = await client.post("/v1/chat/completions", json=body(max_tokens=10))
            assert answer.status_code == 200
            key = redis_keys.quota("default")
            async with asyncio.timeout(PATIENCE_S):
                while int(await redis_client.hget(key, "booked") or 0) < 2 * (prompt + 10):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            answer = await client.post("/v1/chat/completions", json=body(max_tokens=200))
            assert answer.status_code == 200  # into debt, so that nothing is left for another
            async with asyncio.timeout(PATIENCE_S):
                while outcomes("over quota") == over:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
