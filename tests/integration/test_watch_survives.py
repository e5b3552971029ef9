"""A watch of a run over a coordinator and a gateway that are killed with -9, and a network that
loses a quiet connection without a word: its client sees each state of each step once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_coordinator_kills import PIPELINE, Replica

from gateway_process import GatewayProcess
from patience import PATIENCE_S
from plinth.cli.run_client import RunClient
from plinth.client import channels
from plinth.coordinator.runs import RunRecords
from plinth.v1 import runs_pb2 as pb
from scripted_stages import World

SECONDS = {"PLINTH_RPC__KEEPALIVE_S": "1", "PLINTH_RPC__KEEPALIVE_TIMEOUT_S": "1"}
AGE = {"PLINTH_RPC__MAX_CONNECTION_AGE_S": "1"}


class Network:
    """The way to a port; `lose` forgets the connections that are there, and tells nobody."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._age = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def lose(self) -> None:
        self._age += 1

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        age = self._age
        try:
            there = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        self._writers += [writer, there[1]]

        async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(1 << 16):
                    if age == self._age:
                        sink.write(data)
            except ConnectionError:
                pass
            if age == self._age:
                sink.close()

        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))


@asynccontextmanager
async def platform(
    folder: Path, redis_url: str
) -> AsyncIterator[tuple[World, list[Replica], GatewayProcess, Network]]:
    async with World(folder, redis_url) as world:
        coordinators, gateway = (
            [Replica(world), Replica(world)],
            GatewayProcess(world.settings, {**SECONDS, **AGE}),
        )
        network = Network(gateway.grpc_port)
        try:
            for coordinator in coordinators:
                await coordinator.start()
            await gateway.start()
            yield world, coordinators, gateway, network
        finally:
            for part in (*coordinators, gateway):
                await part.kill()


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def check(seen: list[pb.Run]) -> None:
    revisions = [run.status.revision for run in seen]
    assert revisions == sorted(set(revisions))
    assert seen[-1].status.state == pb.RUN_STATE_SUCCEEDED, seen[-1].status.error
    for index, step in enumerate(seen[-1].status.steps):
        states = [run.status.steps[index].state for run in seen]
        once = [now for before, now in zip([None, *states], states, strict=False) if before != now]
        path = [pb.STEP_STATE_PENDING, pb.STEP_STATE_RUNNING, pb.STEP_STATE_SUCCEEDED]
        # The first may have begun when the watch did.
        assert once == (path if index else path[-len(once) :]), step.step_id


@pytest.mark.slow
async def test_a_watch_survives(
    redis_server: str, redis_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody watches while the run goes on: each fault lasts until the step behind it has begun."""
    options = dict(channels.OPTIONS)
    options |= {"grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 1000}
    options["grpc.http2.ping_timeout_ms"] = 1000
    monkeypatch.setattr(channels, "OPTIONS", list(options.items()))
    async with platform(tmp_path, redis_server) as (world, coordinators, gateway, network):
        gates = {name: asyncio.Event() for name in ("q-corpus", "q-dataset", "mini")}
        world.trainer.gates |= gates
        records = RunRecords(redis_client)

        async def running(step: str) -> bool:
            run = await records.get("r1")
            return next(s for s in run.steps if s.name == step).state == pb.STEP_STATE_RUNNING

        async def ended() -> bool:
            return bool((await records.get("r1")).finished_unix_ms)

        address = await network.open()
        with RunClient(address, "") as client:
            await asyncio.to_thread(client.submit, "r1", PIPELINE, {})
            watching = asyncio.create_task(asyncio.to_thread(lambda: list(client.watch("r1"))))
            await until(lambda: running("corpus"))
            await asyncio.sleep(3.0)  # over some connections' age
            await coordinators[0].kill()  # the leader, and whoever told the watch
            await coordinators[1].kill()
            await coordinators[0].start()
            gates["q-corpus"].set()
            await until(lambda: running("dataset"))
            await gateway.kill()
            gates["q-dataset"].set()
            await until(lambda: running("pretrain"))
            await gateway.start()
            await asyncio.sleep(3.0)  # the watch has come back, and the network is quiet
            network.lose()
            gates["mini"].set()
            await until(ended)
            seen = await asyncio.wait_for(watching, PATIENCE_S)
        await network.close()
    check(seen)
