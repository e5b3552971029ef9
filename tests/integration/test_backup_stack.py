"""A platform in the middle of its work is backed up, loses everything, and is put back: its key
works, its names lead where they led, and its run goes on to one end."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.coordinator.runs import RunRecords
from plinth.gateway.keys.api_keys import KeyStore
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.errors import PlinthError
from plinth.shared.queue import Queue
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
  first:
    {kind: train, objective: clm, dataset: $dataset, max_seconds: 1, output: mini,
     model: {layers: 1, hidden: 8, heads: 1, context: 32}}
  out: {kind: publish, model: $first}
  online: {kind: serve, model: $out, name: mini}
  second:
    {kind: train, objective: clm, dataset: $dataset, max_seconds: 2, output: better,
     model: {layers: 1, hidden: 8, heads: 1, context: 32}, after: [online]}
  release: {kind: publish, model: $second}
"""


@asynccontextmanager
async def coordinator(world: World) -> AsyncIterator[None]:
    """A coordinator's process; killed at the end."""
    secret = world.settings.redis_url
    assert secret is not None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(TESTS / "coordinator_process.py"),
        *(str(world.settings.data_dir), secret.get_secret_value(), "1.0"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        await process.wait()


async def submit(world: World, run_id: str) -> None:
    replicas = await world.registry.replicas("coordinator")
    stub = runs_pb2_grpc.RunServiceStub(world.clients.channel(replicas[-1]))
    await stub.CreateRun(create_run(run_id, PIPELINE))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def step(run: rec.RunRecord, name: str) -> rec.StepRecord:
    return next(step for step in run.steps if step.name == name)


async def plinth(*arguments: str, **environment: str) -> str:
    """`plinth …` as a person runs it; what it says. It must end well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "from plinth.cli.main import app; app()"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_everything_is_lost_in_the_middle(tmp_path: Path) -> None:
    old, new, place = tmp_path / "old", tmp_path / "new", str(tmp_path / "backups")
    server = EmbeddedRedis(old)
    url = server.start()
    try:
        key, model = await _work_and_back_up(old, url, place)
    finally:
        server.stop()
    shutil.rmtree(old)

    server = EmbeddedRedis(new)
    environment = {"PLINTH_DATA_DIR": str(new), "PLINTH_REDIS_URL": server.start()}
    try:
        assert "is whole" in await plinth("restore", place, "--check", **environment)
        assert "is restored" in await plinth("restore", place, **environment)
        await _goes_on(new, server.url, key, model)
    finally:
        server.stop()


async def _work_and_back_up(data: Path, url: str, place: str) -> tuple[str, str]:
    async with World(data, url) as world:
        key, _ = await KeyStore(world.redis).create("acme", {"inference"}, "theirs")
        queue = Queue(world.redis, "trainer-jobs", lease_s=60)
        await queue.add("waits", b"spec")
        world.trainer.gates["better"] = asyncio.Event()
        records = RunRecords(world.redis)
        async with coordinator(world):
            await submit(world, "r1")

            async def in_the_middle() -> bool:
                run = await records.get("r1")
                return step(run, "second").state == pb.STEP_STATE_RUNNING

            await until(in_the_middle)
            environment = {"PLINTH_DATA_DIR": str(data), "PLINTH_REDIS_URL": url}
            told = await plinth("backup", place, **environment)
            assert "writers waited" in told and "SHA-256 hashes" in told
            assert key not in told
        assert world.trainer.completed.total() == 3
        model = await asyncio.to_thread(world.store.get, "mini:prod")
        # What comes after the backup is lost, with a key among it.
        await KeyStore(world.redis).create("late", {"inference"})
        world.trainer.gates["better"].set()
    return key, model.digest


async def _goes_on(data: Path, url: str, key: str, model: str) -> None:
    async with World(data, url) as world:
        assert [one.tenant for one in await KeyStore(world.redis).list()] == ["acme"]
        assert (await KeyStore(world.redis).principal(key)).tenant == "acme"
        assert (await asyncio.to_thread(world.store.get, "mini:prod")).digest == model
        await asyncio.to_thread(world.store.verify, "mini:prod")
        assert [d.artifact for d in await asyncio.to_thread(world.deployments.list)] == ["mini@1"]
        lease = await Queue(world.redis, "trainer-jobs", lease_s=60).claim("heir", wait_s=1)
        assert lease is not None and (lease.id, lease.payload) == ("waits", b"spec")

        records = RunRecords(world.redis)
        before = await records.get("r1")
        async with coordinator(world):

            async def ended() -> bool:
                try:
                    return bool((await records.get("r1")).finished_unix_ms)
                except PlinthError:
                    return False

            await until(ended)
        run = await records.get("r1")
        assert run.state == pb.RUN_STATE_SUCCEEDED, run.error
        # Finished steps stayed as they were; the one in the middle was done, once.
        for name in ("corpus", "vocabulary", "dataset", "first", "out", "online"):
            assert step(run, name) == step(before, name)
        assert list(world.trainer.completed.values()) == [1]
        assert world.tokenizer.trained == 0
        models = await asyncio.to_thread(world.store.list, "model")
        assert [model.ref for model in models] == ["better@1", "mini@1"]
        assert await asyncio.to_thread(world.store.aliases, "better") == {"prod": 1}
        assert await world.redis.scard(redis_keys.active_runs()) == 0


async def test_a_restore_over_a_running_platform_is_one_clear_line(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    url = server.start()
    environment = {"PLINTH_DATA_DIR": str(tmp_path / "data"), "PLINTH_REDIS_URL": url}
    try:
        async with World(tmp_path / "data", url):
            await plinth("backup", str(tmp_path / "b"), **environment)
            with pytest.raises(AssertionError) as caught:
                await plinth("restore", str(tmp_path / "b"), "--replace-redis", **environment)
    finally:
        server.stop()
    assert str(caught.value).startswith("plinth: a platform runs on this Redis (inference/")
    assert "Traceback" not in str(caught.value)
