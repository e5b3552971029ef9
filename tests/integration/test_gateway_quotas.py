"""Quotas at both APIs: who is refused, what is paid for when, and what is nobody's fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from gateway_stages import Stack, running_stack, until
from patience import PATIENCE_S
from plinth.gateway.generation.revisions import MODEL_HEADER
from plinth.gateway.keys.api_keys import KeyStore
from plinth.gateway.quotas.interceptor import counts
from plinth.shared import canary, redis_keys
from plinth.shared.canary import Canaries
from plinth.shared.connection import MAX_CONNECTIONS, connect
from plinth.shared.errors import Unavailable
from plinth.v1 import tokenization_pb2, tokenization_pb2_grpc

CHAT = "/v1/chat/completions"
PROMPT = len("<user>x\n<assistant>")


def body(**more: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "x"}], **more}


@asynccontextmanager
async def client(stack: Stack, key: str = "") -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key or stack.key}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=PATIENCE_S) as made:
        yield made


async def booked(redis: Redis, at_least: int, tenant: str = "default") -> int:
    """Once that much is booked."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            raw: Any = await redis.hget(redis_keys.quota(tenant), "booked")  # type: ignore[misc]
            if int(raw or 0) >= at_least:
                return int(raw or 0)
            await asyncio.sleep(0.02)


async def test_a_prompt_is_paid_for_before_the_first_token(
    tmp_path: Path, redis_server: str, redis_client: Redis
) -> None:
    async with running_stack(tmp_path, redis_server, tenant_tokens_per_minute=10**6) as stack:
        stack.shard.first_token_s = 1e6
        async with client(stack) as asking:
            waits = asyncio.create_task(asking.post(CHAT, json=body(max_tokens=3)))
            await until(lambda: len(stack.shard.requests) == 1)
            assert await booked(redis_client, 1) == PROMPT
            waits.cancel()  # its client hangs up: a shard has worked on it
            await asyncio.gather(waits, return_exceptions=True)
            stack.shard.first_token_s = 0
            assert (await asking.post(CHAT, json=body(max_tokens=3))).status_code == 200
            assert await booked(redis_client, 2 * PROMPT + 3) == 2 * PROMPT + 3
            stack.shard.full = True  # what the platform can't do costs nothing
            assert (await asking.post(CHAT, json=body(max_tokens=3))).status_code == 429
            stack.shard.full = False
            assert (await asking.post(CHAT, json=body(max_tokens=4))).status_code == 200
            assert await booked(redis_client, 3 * PROMPT + 7) == 3 * PROMPT + 7


async def test_calls_that_are_passed_on_are_the_tenants_requests(
    tmp_path: Path, redis_server: str, redis_client: Redis
) -> None:
    """By gRPC and by REST; a chat holds the only slot."""
    async with running_stack(tmp_path, redis_server, tenant_concurrent_requests=1) as stack:
        key, _ = await KeyStore(redis_client).create("acme", {"inference", "tokenize"})
        judges, _ = await KeyStore(redis_client).create("acme", {"preferences"})
        stack.shard.delay_s = 0.01
        async with client(stack, key) as asking, client(stack, judges) as judging:
            slow = asyncio.create_task(asking.post(CHAT, json=body(max_tokens=4000)))
            await until(lambda: stack.shard.running == 1)
            async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
                stub = tokenization_pb2_grpc.TokenizationServiceStub(channel)
                told = (("authorization", f"Bearer {key}"),)

                async def encode() -> Any:
                    request = tokenization_pb2.EncodeRequest(model="chat", texts=["x"])
                    return await stub.Encode(request, metadata=told)

                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await encode()
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                refused = await judging.get("/v1/preferences/tasks")
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
                slow.cancel()
                await asyncio.gather(slow, return_exceptions=True)
                await until(lambda: stack.shard.running == 0)
                assert (await let_in(encode)).sequences[0].ids == [120]


async def let_in(call: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await asyncio.sleep(0.02)


def test_every_method_of_a_stage_counts_but_watches() -> None:
    from google.protobuf import descriptor_pool

    from plinth.gateway.proxy import proxied_services

    never: Any = None
    methods = {
        f"/{service.name}/{method}"
        for service in proxied_services(never)
        for method in service.methods()
    }
    uncounted = {method for method in methods if not counts(method)}
    assert uncounted == {
        "/plinth.v1.RunService/WatchRun",
        "/plinth.v1.JobService/WatchJob",
    }
    for method in uncounted:
        service, name = method[1:].split("/")
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        assert found.server_streaming
    assert not counts("/plinth.v1.GenerationService/Chat")  # counted where it is answered
    assert not counts("/grpc.health.v1.Health/Watch")


async def test_a_full_redis_is_no_quota(
    tmp_path: Path, redis_server: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a canary open and quotas set, both of which would write: people are answered."""
    monkeypatch.setattr(canary, "ROUTE_S", 10 * PATIENCE_S)
    async with running_stack(
        tmp_path,
        redis_server,
        tenant_concurrent_requests=5,
        tenant_tokens_per_minute=10**6,
    ) as stack:
        from gateway_stages import Shard

        digest = "sha256:" + "cd" * 32
        await stack.add_shard(
            "canary-0", Shard(digest=digest), model="chat.canary", artifact="chat@2"
        )
        canaries = Canaries(redis_client)
        await canaries.open("chat", "run-1", stable="chat@1", canary="chat@2", share=0.5)
        async with client(stack) as asking:
            async with asyncio.timeout(PATIENCE_S):
                while (await asking.post(CHAT, json=body(max_tokens=1))).headers[
                    MODEL_HEADER
                ] != "chat@2":
                    pass
            used = (await redis_client.info("memory"))["used_memory"]
            await redis_client.config_set("maxmemory", used // 2)
            try:
                with pytest.raises(Unavailable, match="memory limit"):
                    await KeyStore(redis_client).create("acme", {"inference"})
                for _ in range(4):
                    answer = await asking.post(CHAT, json=body(max_tokens=1))
                    assert answer.status_code == 200, answer.text
                    assert answer.headers[MODEL_HEADER] == "chat@1"
            finally:
                await redis_client.config_set("maxmemory", 0)


async def test_a_burst_of_commands_waits_for_its_turn(redis_server: str) -> None:
    """Many more at once than a client's connections, of which blocking reads hold some."""
    redis = connect(redis_server)
    try:
        reads = [redis.xread({f"none-{i}": "$"}, block=300) for i in range(MAX_CONNECTIONS)]
        answers = await asyncio.gather(*reads, *[redis.ping() for _ in range(5 * MAX_CONNECTIONS)])
        assert answers[MAX_CONNECTIONS:] == [True] * 5 * MAX_CONNECTIONS
    finally:
        await redis.aclose()
