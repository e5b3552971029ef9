"""Streams that go on at another replica: each message once, whatever breaks and when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from patience import PATIENCE_S
from plinth.gateway.proxy import proxied_services
from plinth.internal.v1 import inference_pb2, tokenizer_pb2
from plinth.shared.errors import NotFound, PlinthError, ResourceExhausted, Unavailable
from plinth.shared.registry import Replica
from plinth.shared.rpc.client import StageClients, open_channel
from plinth.shared.rpc.resuming import is_resumable
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.rpc.watching import watch
from plinth.shared.settings import load_settings
from plinth.v1 import (
    artifacts_pb2,
    deployments_pb2,
    generation_pb2,
    models_pb2,
    operations_pb2,
    preferences_pb2,
    rewards_pb2,
    runs_pb2,
)
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import jobs_pb2_grpc as rpc

TOKEN = "t" * 32
COUNT = 40
# Answers, which end with their request's deadline and have failover of their own; and ids in,
# text out, which its caller begins anew with the ids it has.
OTHERS = {
    "GenerationService.StreamChat",
    "GenerationService.StreamComplete",
    "InferenceService.Generate",
    "TokenizerService.DecodeStream",
}


def test_every_other_stream_of_the_platform_can_be_resumed() -> None:
    files = (
        artifacts_pb2,
        deployments_pb2,
        generation_pb2,
        inference_pb2,
        pb,
        models_pb2,
        operations_pb2,
        preferences_pb2,
        rewards_pb2,
        runs_pb2,
        tokenizer_pb2,
    )
    streams = {
        f"{service.name}.{method.name}": is_resumable(method)
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    }
    assert {name for name, resumable in streams.items() if not resumable} == OTHERS


class Counting(rpc.JobServiceServicer):
    """Counts to COUNT; breaks off after some numbers in one of many ways."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.calls, self.error = rng, 0, None

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        if self.error is not None:
            raise self.error
        self.calls += 1
        await context.send_initial_metadata(())
        for number in range(int(request.resume_token or 0) + 1, COUNT + 1):
            yield pb.WatchJobResponse(
                job=pb.Job(name=request.name, status=pb.JobStatus(attempts=number)),
                resume_token=str(number),
            )
            if self.rng.random() < 0.1:
                raise self.rng.choice(
                    [Unavailable("restarts"), ResourceExhausted("busy", retry_after_s=0.0)]
                )
            if self.rng.random() < 0.05:
                await context.abort(grpc.StatusCode.CANCELLED, "")


class Stage:
    """A replica that can be ended and started again under another address."""

    def __init__(self, settings: Any, counting: Counting) -> None:
        self._settings, self._counting = settings, counting
        self.replicas_: list[Replica] = []
        self._servers: list[GrpcServer] = []

    async def start(self) -> None:
        service = GrpcService(
            "plinth.v1.JobService",
            lambda server: rpc.add_JobServiceServicer_to_server(self._counting, server),
            {"*": "jobs"},
        )
        server = GrpcServer([service], stage="trainer", settings=self._settings, token=TOKEN)
        port = await server.start()
        self._servers.append(server)
        self.replicas_ = [Replica("trainer", str(port), f"127.0.0.1:{port}")]

    async def stop(self) -> None:
        while self._servers:
            await self._servers.pop().stop(0)

    async def replicas(self, stage: str) -> list[Replica]:
        return self.replicas_


@pytest.mark.parametrize("seed", range(3))
async def test_through_the_gateway_each_message_comes_once(seed: int, tmp_path: Path) -> None:
    """By a client that knows nothing of resume tokens; the replica breaks off and is replaced."""
    rng = random.Random(seed)
    settings = load_settings(data_dir=tmp_path)
    counting = Counting(rng)
    stage = Stage(settings, counting)
    await stage.start()
    clients = StageClients(stage, settings, TOKEN)  # type: ignore[arg-type]
    services = [s for s in proxied_services(clients) if s.name == "plinth.v1.JobService"]
    gateway = GrpcServer(services, stage="gateway", settings=settings, token=TOKEN)
    address = f"127.0.0.1:{await gateway.start()}"
    try:
        async with open_channel(
            address, stage="gateway", settings=settings, token=TOKEN
        ) as channel:
            call = rpc.JobServiceStub(channel).WatchJob(pb.WatchJobRequest(name="jobs/j"))
            seen = []
            async with asyncio.timeout(PATIENCE_S):
                async for message in call:
                    seen.append(message.job.status.attempts)
                    if len(seen) == COUNT // 2:
                        await stage.stop()
                        await stage.start()
        assert seen == list(range(1, COUNT + 1))
        assert counting.calls > 1
    finally:
        await gateway.stop(0)
        await clients.close()
        await stage.stop()


@pytest.mark.parametrize("error", [Unavailable("no"), NotFound("no job")])
async def test_what_never_began_and_what_is_an_answer_comes_at_once(
    error: PlinthError, tmp_path: Path
) -> None:
    settings = load_settings(data_dir=tmp_path)
    counting = Counting(random.Random(1))
    counting.error = error
    stage = Stage(settings, counting)
    await stage.start()
    clients = StageClients(stage, settings, TOKEN)  # type: ignore[arg-type]
    try:
        stream = watch(
            clients,
            "trainer",
            lambda channel: rpc.JobServiceStub(channel).WatchJob,
            pb.WatchJobRequest(),
            patience_s=10 * PATIENCE_S,
        )
        with pytest.raises(type(error)):
            await asyncio.wait_for(anext(stream), PATIENCE_S)
    finally:
        await clients.close()
        await stage.stop()


async def test_a_stage_that_drains_sends_its_watchers_away_at_once(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)

    class Quiet(rpc.JobServiceServicer):
        async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
            await context.send_initial_metadata(())
            await asyncio.Event().wait()
            yield pb.WatchJobResponse()

    stage = Stage(settings, Quiet())  # type: ignore[arg-type]
    await stage.start()
    async with open_channel(
        stage.replicas_[0].address, stage="trainer", settings=settings, token=TOKEN
    ) as channel:
        call = rpc.JobServiceStub(channel).WatchJob(pb.WatchJobRequest())
        await call.initial_metadata()
        server = stage._servers.pop()
        await asyncio.wait_for(server.stop(10 * PATIENCE_S), PATIENCE_S)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
