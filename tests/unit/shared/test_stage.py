"""A stage replica from start to stop, on a real Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import prometheus_client
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc
from plinth.shared.errors import FailedPrecondition, Internal, PlinthError
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.server import GrpcService
from plinth.shared.settings import Settings, load_settings
from plinth.shared.stage import StageContext, run_stage
from plinth.shared.telemetry import stop_metrics_server

NAME = "plinth.internal.v1.TokenizerService"


class Front(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """A front whose health and end the test decides."""

    stage = "tokenizer"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.start_error: Exception | None = None
        self.drained: list[float] = []
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.on_drain: Callable[[], Awaitable[None]] | None = None

    def services(self) -> list[GrpcService]:
        add = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
        return [GrpcService(NAME, lambda server: add(self, server), scopes={"*": "tokenize"})]

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    async def check(self) -> None:
        if self.error is not None:
            raise self.error

    def announcement(self) -> dict[str, str]:
        return {"running": "1", "waiting": "2"}

    async def drain(self, grace_s: float) -> None:
        self.drained.append(grace_s)
        if self.on_drain is not None:
            await self.on_drain()

    async def Encode(self, request, context):
        self.entered.set()
        if request.model == "slow":
            await self.release.wait()
        return pb.EncodeResponse()


def settings_for(url: str, folder: Path) -> Settings:
    return load_settings(data_dir=folder, redis_url=url)


async def opened(settings: Settings, ttl_s: float = 0.6) -> StageContext:
    context = await StageContext.open(settings, stage="tokenizer")
    context.registry = Registry(context.redis, ttl_s=ttl_s)
    context.clients = StageClients(context.registry, settings, context.token)
    return context


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.02)


async def health(address: str, service: str = NAME) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@pytest.fixture(autouse=True)
def _no_metrics_server_left():
    yield
    stop_metrics_server()


@pytest.fixture
async def context(redis_server, redis_client, tmp_path):
    context = await opened(settings_for(redis_server, tmp_path))
    yield context
    await context.close()


def vital(name: str) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value(f"plinth_{name}", {"stage": "tokenizer"})


async def listed(context: StageContext) -> list[str]:
    return [replica.address for replica in await context.registry.replicas("tokenizer")]


async def test_a_stage_serves_is_found_and_ends_without_loss(context) -> None:
    front = Front()
    running = await run_stage(context, front)
    assert await health(running.address) == "SERVING"
    (replica,) = await context.registry.replicas("tokenizer")
    assert replica.address == running.address
    assert {"running": "1", "waiting": "2"}.items() <= replica.fields.items()
    assert replica.fields["metrics"].startswith("127.0.0.1:")
    assert (vital("stage_healthy"), vital("redis_reachable")) == (1, 1)
    await running.check()
    stub = await context.clients.tokenizer()
    accepted = asyncio.ensure_future(stub.Encode(pb.EncodeRequest(model="slow")))
    await asyncio.wait_for(front.entered.wait(), PATIENCE_S)
    seen = {}

    async def look() -> None:
        seen["health"] = await health(running.address)
        seen["alive"] = await health(running.address, "")
        seen["listed"] = await listed(context)

    front.on_drain = look
    stopping = asyncio.create_task(running.stop(600))
    await until(lambda: _true(len(seen) == 3))
    assert seen == {"health": "NOT_SERVING", "alive": "SERVING", "listed": []}
    assert not stopping.done()
    front.release.set()
    await accepted  # accepted before: answered
    await asyncio.wait_for(stopping, PATIENCE_S)
    assert front.drained == [600]
    with pytest.raises(PlinthError):
        await running.check()
    await running.stop(1)  # a second time does nothing
    assert front.drained == [600]


async def _true(value: bool) -> bool:
    return value


async def test_an_unhealthy_front_leaves_the_registry_and_comes_back(context) -> None:
    front = Front()
    running = await run_stage(context, front)
    try:
        for error in (Internal("the step counter stands still"), ValueError("a bug")):
            front.error = error

            async def lapsed() -> bool:
                return await listed(context) == []

            await until(lapsed)
            assert await health(running.address) == "NOT_SERVING"
            assert vital("stage_healthy") == 0
            assert await health(running.address, "") == "SERVING"
            with pytest.raises(type(error)):
                await running.check()
            front.error = None

            async def back() -> bool:
                return await listed(context) == [running.address]

            await until(back)
            assert await health(running.address) == "SERVING"
            assert vital("stage_healthy") == 1
    finally:
        await running.stop(0)


async def test_a_failed_start_leaves_nothing(context) -> None:
    front = Front()
    front.start_error = FailedPrecondition("no weights")
    with pytest.raises(FailedPrecondition, match="no weights"):
        await run_stage(context, front)
    assert await listed(context) == []
    assert not [t for t in asyncio.all_tasks() if t.get_name() == "plinth-heartbeat"]


async def test_the_heartbeat_outlives_redis(tmp_path) -> None:
    server = EmbeddedRedis(tmp_path / "r")
    context = await opened(settings_for(server.start(), tmp_path), ttl_s=0.6)
    front = Front()
    running = await run_stage(context, front)
    try:
        server.stop()
        beats = 0
        announcement = front.announcement

        def counted() -> dict[str, str]:
            nonlocal beats
            beats += 1
            return announcement()

        front.announcement = counted  # type: ignore[method-assign]
        await until(lambda: _true(beats >= 2), PATIENCE_S)
        assert vital("redis_reachable") == 0
        await running.check()  # Redis' absence does not make the stage unhealthy
        assert await health(running.address) == "SERVING"
        server.start()
        fresh = Registry(context.redis)

        async def back() -> bool:
            return [r.address for r in await fresh.replicas("tokenizer")] == [running.address]

        await until(back, PATIENCE_S)
        await until(lambda: _true(vital("redis_reachable") == 1))
    finally:
        await running.stop(0)
        await context.close()
        server.stop()


async def test_stopping_without_redis_still_drains(tmp_path) -> None:
    server = EmbeddedRedis(tmp_path / "r")
    context = await opened(settings_for(server.start(), tmp_path))
    front = Front()
    running = await run_stage(context, front)
    server.stop()
    await running.stop(0)
    assert front.drained == [0]
    await context.close()


async def test_without_redis_the_error_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PLINTH_REDIS_URL", raising=False)
    with pytest.raises(FailedPrecondition, match="PLINTH_REDIS_URL"):
        await StageContext.open(load_settings(data_dir=tmp_path), stage="tokenizer")
