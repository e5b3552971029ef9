"""What a body may hold, over HTTP and gRPC: who may send one, how it comes, what is told."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from gateway_stages import Shard, Stack, running_stack, script_text
from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.gateway.generation.generator import MAX_AT_ONCE
from plinth.gateway.keys.api_keys import KeyStore
from plinth.shared.connection import connect
from plinth.v1 import chat_pb2, generation_pb2, generation_pb2_grpc, sampling_pb2

USER = {"role": "user", "content": "hi"}
OK: dict[str, Any] = {"model": "chat", "messages": [USER], "max_tokens": 2, "seed": 1}
NO_JSON = b"{" * 50_000

pytestmark = pytest.mark.asyncio(loop_scope="module")


class CountingShard(Shard):
    """Knows how many answers it ever made at once."""

    most: int = 0

    async def _generate(self, request: Any) -> AsyncIterator[Any]:
        self.most = max(self.most, self.running)
        async for message in super()._generate(request):
            yield message


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("gateway")
    async with running_stack(folder, redis_server, first=CountingShard()) as stack:
        yield stack


def client(stack: Stack, key: str = "") -> httpx.AsyncClient:
    return stack.http(authorization=f"Bearer {key or stack.key}")


@pytest_asyncio.fixture(loop_scope="module")
async def http(gateway: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with client(gateway) as connection:
        yield connection


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_body_is_not_read_for_a_key_that_may_not_generate(
    gateway: Stack, path: str
) -> None:
    redis = connect(gateway.redis_url)
    key, _record = await KeyStore(redis).create("acme", ["jobs"], "no inference")
    await redis.aclose()
    async with client(gateway, key) as connection:
        answer = await connection.post(path, content=NO_JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[str]:
    """For a stack beside the module's: in one Redis both would announce a "shard-0", and a request
    would go to either."""
    server = EmbeddedRedis(tmp_path / "redis")
    yield server.start()
    server.stop()


async def test_a_body_is_not_read_for_a_tenant_that_has_nothing_left(
    own_redis: str, tmp_path: Path
) -> None:
    shard = Shard(first_token_s=PATIENCE_S)
    async with (
        running_stack(tmp_path, own_redis, first=shard, tenant_concurrent_requests=1) as stack,
        client(stack) as connection,
    ):
        first = asyncio.create_task(connection.post("/v1/chat/completions", json=OK))
        async with asyncio.timeout(PATIENCE_S):
            while not shard.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        answer = await connection.post("/v1/chat/completions", content=NO_JSON)
        assert answer.status_code == 429
        first.cancel()


async def test_what_had_no_effect_is_told_and_counted(http: httpx.AsyncClient) -> None:
    body = {**OK, "wibble": 1, "min_p": 0, "messages": [{**USER, "name": "critic"}]}
    for stream in (False, True):
        answer = await http.post("/v1/chat/completions", json={**body, "stream": stream})
        assert answer.status_code == 200
        assert answer.headers["x-plinth-ignored"] == "wibble, messages.name"
    plain = await http.post("/v1/completions", json={"model": "chat", "prompt": "a"})
    assert "x-plinth-ignored" not in plain.headers
    page = (await http.get("/metrics")).text
    for label in ("messages.name", "unknown"):
        assert f'plinth_ignored_fields_total{{field="{label}"}}' in page


async def test_strict_gateways_refuse_it(redis_server: str, tmp_path: Path) -> None:
    async with (
        running_stack(tmp_path, redis_server, unknown_fields="refuse") as stack,
        client(stack) as connection,
    ):
        answer = await connection.post("/v1/chat/completions", json={**OK, "wibble": 1})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "wibble")
        assert (await connection.post("/v1/chat/completions", json=OK)).status_code == 200


async def test_packed_bodies(http: httpx.AsyncClient) -> None:
    raw = json.dumps(OK).encode()
    path = "/v1/chat/completions"
    answer = await http.post(path, content=gzip.compress(raw), headers={"content-encoding": "gzip"})
    assert answer.json()["choices"][0]["message"]["content"] == script_text(1, 0, 2)
    bomb = gzip.compress(b" " * 100_000_000)
    answer = await http.post(path, content=bomb, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    answer = await http.post(path, content=raw, headers={"content-encoding": "br"})
    assert answer.status_code == 415
    assert "gzip, deflate" in answer.json()["error"]["message"]


async def test_many_prompts_are_answered_some_at_a_time(
    http: httpx.AsyncClient, gateway: Stack
) -> None:
    body = {"model": "chat", "prompt": ["a"] * 100, "n": 2, "max_tokens": 3, "seed": 1}
    answer = (await http.post("/v1/completions", json=body)).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [script_text(1, 0, 3), script_text(1, 1, 3)] * 100
    assert answer["usage"]["completion_tokens"] == 600
    assert 1 < gateway.shard.most <= MAX_AT_ONCE  # type: ignore[attr-defined]


async def test_the_bound_on_tokens_is_for_the_whole_request(http: httpx.AsyncClient) -> None:
    body = {"model": "chat", "prompt": ["a"] * 100, "max_tokens": 4_000}
    error = (await http.post("/v1/completions", json=body)).json()["error"]
    assert error["code"] == "too_many_tokens"
    assert "2621" in error["message"]  # what it may ask for


async def test_control_characters_and_roles_come_through_alike(
    http: httpx.AsyncClient, gateway: Stack
) -> None:
    text = "\x1b[31mred\x1b[0m \x07"
    wanted = f"<system>{text}\n<user>hi\n<assistant>".encode()
    messages = [{"role": "developer", "content": text}, USER]
    assert (
        await http.post("/v1/chat/completions", json={**OK, "messages": messages})
    ).status_code == 200
    assert bytes(gateway.shard.requests[-1].input[0].tokens.ids) == wanted
    request = generation_pb2.ChatRequest(
        model="chat",
        messages=[chat_pb2.ChatMessage(**message) for message in messages],
        options=generation_pb2.GenerationOptions(
            sampling=sampling_pb2.SamplingParams(max_tokens=2, top_p=0, temperature=1e-30),
            stop=[""],
        ),
    )
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        answer = await stub.Chat(request, metadata=(("authorization", f"Bearer {gateway.key}"),))
        assert answer.choices[0].finish_reason
    last = gateway.shard.requests[-1]
    assert bytes(last.input[0].tokens.ids) == wanted
    assert last.sampling.top_p > 0
    assert last.sampling.temperature == 0
