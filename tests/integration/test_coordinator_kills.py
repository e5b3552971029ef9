"""The coordinator is killed with -9 at random moments, and Redis goes and comes back: a run ends
as if nothing had happened, and no job runs to completion twice."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.coordinator.run_messages import run_message
from plinth.coordinator.runs import RunRecords
from plinth.shared.errors import Cancelled, PlinthError, Unavailable
from plinth.v1 import runs_pb2 as pb
from plinth.v1 import runs_pb2_grpc
from scripted_stages import World
from shown_runs import create_run

TESTS = Path(__file__).parents[1]
PIPELINE = """
name: q
steps:
  corpus: {kind: data, builtin: stdlib}
  vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 300}
  dataset: {kind: data, corpus: $corpus, tokenizer: $vocabulary}
  pretrain:
    {kind: train, objective: clm, dataset: $dataset, max_seconds: 1, output: mini,
     model: {layers: 1, hidden: 8, heads: 1, context: 32}}
  exam: {kind: evaluate, model: $pretrain, corpus: $corpus, prompts: [hello]}
  release: {kind: publish, model: $pretrain, after: [exam]}
  online: {kind: serve, model: $release, name: mini}
"""


class Replica:
    """A coordinator's process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        settings = self._world.settings
        assert settings.redis_url is not None
        arguments = [str(settings.data_dir), settings.redis_url.get_secret_value(), "1.0"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(TESTS / "coordinator_process.py"),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await self._process.stdout.readline() == b"ready\n"

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def replica(world: World) -> AsyncIterator[Replica]:
    one = Replica(world)
    await one.start()
    try:
        yield one
    finally:
        await one.kill()


async def stub(world: World) -> Any:
    """A client of whichever replica answers."""
    replicas = await world.registry.replicas("coordinator")
    channel = world.clients.channel(replicas[-1])
    return runs_pb2_grpc.RunServiceStub(channel)


async def ended(world: World, run_id: str) -> pb.Run:
    """Straight from the record, which outlives replicas and is there once Redis is back."""
    records = RunRecords(world.redis)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                run = run_message(await records.get(run_id))
            except PlinthError:
                run = pb.Run()
            if run.status.HasField("end_time"):
                return run
            await asyncio.sleep(0.1)


async def check(world: World, run: pb.Run) -> None:
    assert run.status.state == pb.RUN_STATE_SUCCEEDED, run.status.error
    assert set(world.trainer.completed.values()) == {1}
    assert len(world.trainer.completed) == 3
    assert await asyncio.to_thread(world.store.aliases, "mini") == {"prod": 1}
    served = [d.name for d in await asyncio.to_thread(world.deployments.list)]
    assert served == ["mini"]  # and no candidate is left over
    models = await asyncio.to_thread(world.store.list, "model")
    assert [model.ref for model in models] == ["mini@1"]


@pytest.mark.slow
async def test_killed_at_random_moments(
    redis_server: str, redis_client: Any, tmp_path: Path
) -> None:
    rng = random.Random(7)
    async with World(tmp_path, redis_server) as world:
        world.trainer.seconds = 1.0
        async with replica(world) as one:
            request = create_run("r1", PIPELINE)
            await (await stub(world)).CreateRun(request)
            for _ in range(6):
                await asyncio.sleep(rng.uniform(0.1, 2.5))
                await one.kill()
                await one.start()
            run = await ended(world, "r1")
        await check(world, run)


async def test_a_second_replica_takes_over_and_watchers_see_the_end(
    redis_server: str, redis_client: Any, tmp_path: Path
) -> None:
    async with World(tmp_path, redis_server) as world:
        world.trainer.gates["mini"] = asyncio.Event()
        async with replica(world) as first, replica(world):
            request = create_run("r1", PIPELINE)
            await (await stub(world)).CreateRun(request)
            await asyncio.wait_for(world.trainer.training.wait(), PATIENCE_S)
            await first.kill()  # the leader, since it was first
            world.trainer.gates["mini"].set()
            seen = []
            while not seen or not seen[-1].status.HasField("end_time"):
                try:  # a replica that is dead is still listed for some seconds
                    watch = pb.WatchRunRequest(name="runs/r1")
                    async for message in (await stub(world)).WatchRun(watch, timeout=PATIENCE_S):
                        seen += [message.run] if message.HasField("run") else []
                except (Unavailable, Cancelled):
                    await asyncio.sleep(0.2)
        await check(world, seen[-1])


async def test_redis_goes_and_comes_back(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    async with World(tmp_path / "data", server.start()) as world:
        try:
            world.trainer.gates["mini"] = asyncio.Event()
            async with replica(world):
                request = create_run("r1", PIPELINE)
                await (await stub(world)).CreateRun(request)
                await asyncio.wait_for(world.trainer.training.wait(), PATIENCE_S)
                server.stop()
                world.trainer.gates["mini"].set()
                await asyncio.sleep(3.0)  # longer than the lease: the leader is none any more
                server.start()
                run = await ended(world, "r1")
            await check(world, run)
        finally:
            server.stop()
