"""Two revisions under one name, through the real gateway: shares, failover, fallback, what is told.

The shards are scripted; each refuses a request that is bound to other weights than its own, and a
resumed one that doesn't bring exactly what was made before.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from gateway_stages import Shard, Stack, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.gateway.generation.revisions import MODEL_HEADER
from plinth.shared import canary
from plinth.shared.canary import Canaries, answer_key
from plinth.shared.canary_counts import ROLES, Tally
from plinth.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2

NEW = "sha256:" + "cd" * 32
SHARE = 0.1


@pytest.fixture(autouse=True)
def _the_route_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody renews it here, as a run does."""
    monkeypatch.setattr(canary, "ROUTE_S", 10 * PATIENCE_S)


async def add_canary(stack: Stack, id: str = "canary-0", **shard: Any) -> Shard:
    made = Shard(digest=NEW, **shard)
    await stack.add_shard(id, made, model="chat.canary", artifact="chat@2")
    return made


async def route(redis: Any, share: float = SHARE, **more: Any) -> Canaries:
    canaries = Canaries(redis)
    await canaries.open("chat", "run-1", stable="chat@1", canary="chat@2", share=share, **more)
    return canaries


@asynccontextmanager
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.http() as client:
        yield client


def body(**more: Any) -> dict[str, Any]:
    return {"model": "chat", "prompt": "Say it", "max_tokens": 2, "seed": 1, **more}


async def complete(client: httpx.AsyncClient, **more: Any) -> httpx.Response:
    return await client.post("/v1/completions", json=body(**more))


async def streamed(client: httpx.AsyncClient, tokens: int, **more: Any) -> tuple[str, str]:
    """(the revision that answered, what was sent)"""
    ask = body(max_tokens=tokens, stream=True, **more)
    async with client.stream("POST", "/v1/completions", json=ask) as response:
        assert response.status_code == 200
        return response.headers[MODEL_HEADER], (await response.aread()).decode()


def text_of(sent: str) -> str:
    events = [line[6:] for line in sent.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


async def counted(canaries: Canaries, requests: int) -> dict[str, Tally]:
    """The tallies once that many requests are booked (which happens behind the answers)."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            state = await canaries.state("chat")
            assert state is not None
            if (
                sum(tally.requests + tally.cancelled for tally in state.tallies.values())
                >= requests
            ):
                return dict(state.tallies)
            await asyncio.sleep(0.02)


async def test_a_thousand_requests_share_as_asked(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        assert (await complete(client)).headers[MODEL_HEADER] == "chat@1"
        new = await add_canary(stack)
        assert (await complete(client)).headers[MODEL_HEADER] == "chat@1"  # no route: no traffic
        canaries = await route(redis_client)
        answers = []
        for _ in range(20):
            answers += await asyncio.gather(*(complete(client) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        told = Counter(answer.headers[MODEL_HEADER] for answer in answers)
        assert told == {"chat@1": 900, "chat@2": 100}
        assert len(new.requests) == 100
        # Each says by which weights, and goes by its public name.
        for answer in answers:
            digest = answer.json()["system_fingerprint"]
            assert (digest == NEW) == (answer.headers[MODEL_HEADER] == "chat@2")
            assert answer.json()["model"] == "chat"
        tallies = await counted(canaries, 1000)
        assert (tallies["canary"].requests, tallies["canary"].errors) == (100, 0)
        assert (tallies["stable"].requests, tallies["stable"].tokens) == (900, 1800)
        assert sum(tallies["canary"].ttft.values()) == 100
        page = (await client.get("/metrics")).text
        assert 'plinth_revision_requests_total{model="chat",outcome="ok",revision="chat@2"}' in page


async def test_a_canary_is_no_model_of_its_own(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        await add_canary(stack)
        listed = (await client.get("/v1/models")).json()["data"]
        assert [(model["id"], model["artifact"]) for model in listed] == [("chat", "chat@1")]
        assert (await complete(client, model="chat.canary")).status_code == 404


async def test_grpc_tells_the_revision_behind_the_answer(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with running_stack(tmp_path, redis_server) as stack:
        await add_canary(stack)
        canaries = await route(redis_client, 0.5)
        async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            told = []
            for _ in range(4):
                call = stub.Complete(
                    generation_pb2.CompleteRequest(
                        model="chat",
                        prompt="Say it",
                        options=generation_pb2.GenerationOptions(
                            sampling=sampling_pb2.SamplingParams(max_tokens=2, seed=1)
                        ),
                    ),
                    metadata=(("authorization", f"Bearer {stack.key}"),),
                )
                answer = await call
                request_id = dict(await call.trailing_metadata())["x-request-id"]
                assert answer.id == f"cmpl-{request_id}"
                told.append((answer.revision, answer.weights_digest))
                judged = answer_key("default", answer.id)
                role = "canary" if answer.revision == "chat@2" else "stable"
                assert await canaries.report("chat", answer=judged, good=True) == role
        assert [name for name, _ in told] == ["chat@1", "chat@2"] * 2
        assert all((digest == NEW) == (name == "chat@2") for name, digest in told)


async def test_a_stream_goes_on_with_its_own_weights(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    """One of two canary shards dies in mid-stream; the stable shard is idle and never asked."""
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        await route(redis_client, 0.5)
        first = await add_canary(stack, delay_s=0.01)
        assert (await complete(client)).headers[MODEL_HEADER] == "chat@1"
        stream = asyncio.create_task(streamed(client, 150))
        await until(lambda: first.running == 1)
        second = await add_canary(stack, "canary-1", delay_s=0.0)
        await stack.replicas["canary-0"].stop()
        told, sent = await stream
        assert (told, text_of(sent)) == ("chat@2", script_text(1, 0, 150))
        assert second.requests[0].first_output_position > 0
        assert len(stack.shards["shard-0"].requests) == 1


async def test_a_stream_whose_weights_are_gone_ends_in_an_error(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with (
        running_stack(tmp_path, redis_server, resume_patience_s=0.3) as stack,
        http(stack) as client,
    ):
        canaries = await route(redis_client, 0.5)
        shard = await add_canary(stack, delay_s=0.01)
        await complete(client)
        stream = asyncio.create_task(streamed(client, 3000))
        await until(lambda: shard.running == 1)
        await asyncio.sleep(0.1)  # some tokens are out
        await stack.replicas["canary-0"].stop()
        told, sent = await stream
        assert told == "chat@2"
        assert "no shard could take the request" in sent
        assert "[DONE]" not in sent
        assert len(stack.shards["shard-0"].requests) == 1  # the other weights were never asked
        assert (await counted(canaries, 2))["canary"].errors == 1


async def test_before_the_first_token_the_stable_revision_answers_instead(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        canaries = await route(redis_client, 0.5)
        bad = await add_canary(stack, fails=True)
        answers = [await complete(client) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers[MODEL_HEADER] for answer in answers} == {"chat@1"}
        assert {answer.json()["choices"][0]["text"] for answer in answers} == {script_text(1, 0, 2)}
        assert len(bad.requests) == 10
        tallies = await counted(canaries, 30)
        assert (tallies["canary"].requests, tallies["canary"].errors) == (10, 10)
        assert (tallies["stable"].requests, tallies["stable"].errors) == (20, 0)


async def test_every_request_ends_in_its_cohort_however_it_ends(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    """Evidence waits for what has not ended: answered, refused, failed over, and hung up on before
    the first token and after it."""
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        await complete(client)
        canaries = await route(redis_client, 0.5)
        new = await add_canary(stack)
        for revision in ("chat@1", "chat@2"):
            assert (await complete(client)).headers[MODEL_HEADER] == revision
        for _ in range(2):  # each revision refuses one
            assert (await complete(client, prompt=[1] * 5000)).status_code == 400
        for failing in (False, True):  # the stable revision answers what the canary fails at
            new.fails = failing
            assert (await complete(client)).headers[MODEL_HEADER] == "chat@1"
        new.fails = False
        assert (await complete(client)).headers[MODEL_HEADER] == "chat@1"
        new.digest = "sha256:other"  # it refuses what the stable revision answers
        assert (await complete(client)).headers[MODEL_HEADER] == "chat@1"
        new.digest = NEW
        stack.shard.delay_s, new.first_token_s = 0.01, 10 * PATIENCE_S
        ask = body(max_tokens=3000, stream=True)
        async with client.stream("POST", "/v1/completions", json=ask) as response:
            assert response.headers[MODEL_HEADER] == "chat@1"
            await anext(response.aiter_lines())
        asked = len(new.requests)
        hanging = asyncio.create_task(complete(client))
        await until(lambda: len(new.requests) > asked)
        hanging.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                state = await canaries.state("chat")
                assert state is not None
                if all(one.given == one.settled for one in state.cohorts):
                    break
                await asyncio.sleep(0.02)
        found = {
            role: sum((one.outcomes(role) for one in state.cohorts), Tally()) for role in ROLES
        }
        counts = {r: (t.requests, t.errors, t.cancelled, t.unanswered) for r, t in found.items()}
        assert counts == {"stable": (4, 0, 1, 0), "canary": (4, 2, 1, 1)}


async def test_a_canary_that_is_promoted_gets_all_and_a_closed_one_nothing(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        canaries = await route(redis_client)
        await add_canary(stack)
        await canaries.promote("chat", "run-1")
        told = {(await complete(client)).headers[MODEL_HEADER] for _ in range(10)}
        assert told == {"chat@2"}
        await canaries.close("chat", "run-1")
        told = {(await complete(client)).headers[MODEL_HEADER] for _ in range(10)}
        assert told == {"chat@1"}


async def test_a_stream_of_a_promoted_canary_goes_on_at_the_new_stable_shard(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    """The same weights under the name itself: what follows when the canary's shards go."""
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        canaries = await route(redis_client)
        shard = await add_canary(stack, delay_s=0.01)
        await canaries.promote("chat", "run-1")
        stream = asyncio.create_task(streamed(client, 150))
        await until(lambda: shard.running == 1)
        promoted = Shard(digest=NEW)
        await stack.add_shard("shard-new", promoted, artifact="chat@2")
        await stack.replicas["canary-0"].stop()
        told, sent = await stream
        assert (told, text_of(sent)) == ("chat@2", script_text(1, 0, 150))
        assert promoted.requests[0].first_output_position > 0
        assert promoted.requests[0].binding.model == "chat"


async def test_sticky_users_keep_their_revision(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        await complete(client)
        (_, tenant) = stack.shard.seen[0]
        users: dict[bool, list[str]] = {True: [], False: []}  # by whether the canary is theirs
        for number in range(40):
            user = f"user-{number}"
            users[canary._point("chat", f"{tenant}\0{user}") < 0.5].append(user)
        canaries = await route(redis_client, 0.5, sticky=True)
        await add_canary(stack)
        for number in range(60):
            theirs = number % 4 == 0
            answer = await complete(client, user=users[theirs][number % 8])
            assert answer.headers[MODEL_HEADER] == ("chat@2" if theirs else "chat@1")
        # All of the traffic from users of the canary: the share is worth more than their habit.
        for number in range(140):
            await complete(client, user=users[True][number % 8])
        state = await canaries.state("chat")
        assert state is not None
        assert (state.asked, state.given) == (200, 104)


async def test_without_a_route_the_stable_revision_answers(
    tmp_path: Path, redis_server: str, redis_client: Any
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, http(stack) as client:
        await route(redis_client, 0.5)
        await add_canary(stack)
        await redis_client.delete("plinth:1:canary:{chat}")
        assert {(await complete(client)).headers[MODEL_HEADER] for _ in range(6)} == {"chat@1"}
