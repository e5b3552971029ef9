"""Connections of StageClients: what ends a call in flight, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from patience import PATIENCE_S
from plinth.shared.errors import Unavailable
from plinth.shared.registry import Replica
from plinth.shared.rpc import client as client_module
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import Settings, load_settings
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import jobs_pb2_grpc as rpc

TOKEN = "t" * 32
STAGES = ("trainer", "reward", "tokenizer")


class Beats(rpc.JobServiceServicer):
    """A watch that says something whenever it is told to."""

    def __init__(self) -> None:
        self.beat = asyncio.Condition()
        self.number = 0
        self.watchers = 0

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        self.watchers += 1
        last = self.number  # before its client knows of it: what is said from then on is for it
        try:
            await context.send_initial_metadata(())
            while True:
                async with self.beat:
                    await self.beat.wait_for(lambda last=last: self.number > last)
                last = self.number
                yield pb.WatchJobResponse(resume_token=str(last))
        finally:
            self.watchers -= 1

    async def say(self) -> None:
        async with self.beat:
            self.number += 1
            self.beat.notify_all()


@asynccontextmanager
async def serving(settings: Settings, beats: Beats) -> AsyncIterator[str]:
    service = GrpcService(
        "plinth.v1.JobService",
        lambda server: rpc.add_JobServiceServicer_to_server(beats, server),
        {"*": "jobs"},
    )
    server = GrpcServer([service], stage="trainer", settings=settings, token=TOKEN)
    port = await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


class Listed:
    def __init__(self) -> None:
        self.answer: dict[str, list[Replica]] = {stage: [] for stage in STAGES}

    async def replicas(self, stage: str) -> list[Replica]:
        return self.answer[stage]


async def next_of(call: Any) -> pb.WatchJobResponse:
    answer = await asyncio.wait_for(call.read(), PATIENCE_S)
    assert answer is not grpc.aio.EOF
    return answer


Step = st.tuples(st.sampled_from(STAGES), st.booleans(), st.sampled_from([0.0, 30.0, 700.0]))


@given(steps=st.lists(Step, min_size=1, max_size=8))
@hypothesis_settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_no_listing_ends_a_call_in_flight(
    steps: list[tuple[str, bool, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is listed when, also of the replica itself: a call ends when its replica ends it."""
    settings = load_settings(data_dir=tmp_path)
    clock = SimpleNamespace(now=0.0)
    listed = Listed()
    async with AsyncExitStack() as stack:
        # The pool's clock alone: asyncio and gRPC keep theirs.
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(client_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
        patch.setattr(client_module, "DRAIN_S", 0.0, raising=False)
        beats = {stage: Beats() for stage in STAGES}
        replicas = {}
        for stage in STAGES:
            address = await stack.enter_async_context(serving(settings, beats[stage]))
            replicas[stage] = Replica(stage, f"{stage}-1", address)
        pool = StageClients(listed, settings, TOKEN)  # type: ignore[arg-type]
        stack.push_async_callback(pool.close)
        calls = {}
        for stage in STAGES:
            listed.answer[stage] = [replicas[stage]]
            stub = rpc.JobServiceStub(pool.channel(await pool.pick(stage)))
            calls[stage] = stub.WatchJob(pb.WatchJobRequest())
            await calls[stage].initial_metadata()
        for stage, there, seconds in steps:
            clock.now += seconds
            listed.answer[stage] = [replicas[stage]] if there else []
            try:
                await pool.pick(stage)
            except client_module.Unavailable:
                assert not there
            await asyncio.sleep(0)
        for stage in STAGES:
            await beats[stage].say()
            assert (await next_of(calls[stage])).resume_token == "1"
            calls[stage].cancel()


async def test_a_forgotten_connection_is_closed_after_its_last_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "FORGET_AFTER_S", -1.0)
    settings = load_settings(data_dir=tmp_path)
    listed, beats = Listed(), Beats()
    async with serving(settings, beats) as address:
        pool = StageClients(listed, settings, TOKEN)  # type: ignore[arg-type]
        try:
            channel = pool.channel(Replica("trainer", "1", address))
            calls = [rpc.JobServiceStub(channel).WatchJob(pb.WatchJobRequest()) for _ in "ab"]
            for call in calls:
                await call.initial_metadata()
            with pytest.raises(client_module.Unavailable):
                await pool.pick("trainer")
            calls[0].cancel()
            await beats.say()
            await next_of(calls[1])
            assert channel.get_state() is grpc.ChannelConnectivity.READY
            calls[1].cancel()
            async with asyncio.timeout(PATIENCE_S):
                while channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            await pool.close()


async def test_a_connection_s_age_ends_no_call(tmp_path: Path) -> None:
    """The server asks to move, and what is in flight stays: over ten ages and their old grace."""
    # An age of 50 ms; the grace that there was before, as small.
    fields = {"max_connection_age_s": 0.05}
    if "max_connection_age_grace_s" in Settings.model_fields["rpc"].annotation.model_fields:
        fields["max_connection_age_grace_s"] = 0.05
    settings = load_settings(data_dir=tmp_path, rpc=fields)
    beats = Beats()
    async with serving(settings, beats) as address:
        pool = StageClients(Listed(), settings, TOKEN)  # type: ignore[arg-type]
        try:
            here = Replica("trainer", "1", address)
            call = rpc.JobServiceStub(pool.channel(here)).WatchJob(pb.WatchJobRequest())
            await call.initial_metadata()
            aged = 0
            while aged < 10:  # an age is over when a new call comes over a new connection
                await asyncio.sleep(0.06)
                other = rpc.JobServiceStub(pool.channel(here)).WatchJob(pb.WatchJobRequest())
                await other.initial_metadata()
                other.cancel()
                await beats.say()
                assert (await next_of(call)).resume_token
                aged += 1
            call.cancel()
        finally:
            await pool.close()


@asynccontextmanager
async def idle_network(address: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to `address` that forgets its connections silently once the event is set."""
    gone = asyncio.Event()
    writers = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not gone.is_set():
                writer.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = address.rsplit(":", 1)
        there = await asyncio.open_connection(host, int(port))
        writers.extend([writer, there[1]])
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer), return_exceptions=True)

    proxy = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}", gone
    finally:
        proxy.close()
        for writer in writers:
            writer.close()


async def test_an_idle_network_that_lost_the_connection_is_noticed_by_both_sides(
    tmp_path: Path,
) -> None:
    """Also after more quiet than gRPC pings by itself."""
    rpc_settings: dict[str, float] = {"keepalive_s": 1.0, "keepalive_timeout_s": 0.5}
    settings = load_settings(data_dir=tmp_path, rpc=rpc_settings)
    beats = Beats()
    async with serving(settings, beats) as address, idle_network(address) as (way, gone):
        pool = StageClients(Listed(), settings, TOKEN)  # type: ignore[arg-type]
        try:
            stub = rpc.JobServiceStub(pool.channel(Replica("trainer", "1", way)))
            call = stub.WatchJob(pb.WatchJobRequest())
            await call.initial_metadata()
            await asyncio.sleep(4.0)  # four keepalives without data; gRPC's own limit is two
            gone.set()
            with pytest.raises(Unavailable):
                await next_of(call)
            async with asyncio.timeout(PATIENCE_S):
                while beats.watchers:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            await pool.close()
