"""A stream that is ended in the very moment of its first send ends with its status all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from patience import PATIENCE_S
from plinth.shared.identity import Principal
from plinth.shared.rpc.auth import Metadata
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import load_settings
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import jobs_pb2_grpc as rpc


async def admit(metadata: Metadata) -> Principal:
    return Principal(tenant="t", key_id="k", scopes=frozenset({"admin"}))


async def ended(tmp_path: Path, first: str) -> grpc.aio.AioRpcError:
    """How a call ends whose server sends `first` and is told to end it meanwhile."""

    class Watched(rpc.JobServiceServicer):
        async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
            # Behind the first step of the send that follows.
            asyncio.get_running_loop().call_soon(server._idle_calls.end)
            if first == "metadata":
                await context.send_initial_metadata(())
            yield pb.WatchJobResponse()
            await asyncio.Event().wait()

    server = GrpcServer(
        [
            GrpcService(
                "plinth.v1.JobService",
                lambda made: rpc.add_JobServiceServicer_to_server(Watched(), made),
            )
        ],
        stage="trainer",
        settings=load_settings(data_dir=tmp_path),
        token="t" * 32,
        authenticator=admit,
    )
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = rpc.JobServiceStub(channel).WatchJob(pb.WatchJobRequest(name="jobs/j"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async with asyncio.timeout(PATIENCE_S):
                    async for _ in call:
                        pass
            return caught.value
    finally:
        await server.stop(0)


@pytest.mark.parametrize("first", ["metadata", "message"])
async def test_a_drain_in_the_moment_of_the_first_send(tmp_path: Path, first: str) -> None:
    error = await ended(tmp_path, first)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in (error.details() or "")
