"""Sampling and judging behind a queue: models that come late, workers that go, work that can't be
done; and judgements that outlive Redis's death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from gateway_stages import (
    TOKEN,
    ByteTokenizer,
    Replica,
    Shard,
    bindings,
    gateway_settings,
    script_text,
    shard_service,
    tokenizer_service,
)
from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.specs import make_task
from plinth.coordinator.preferences.work import PreferenceWork, PreferenceWorker, work_queue
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.connection import connect
from plinth.shared.queue import ItemState
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.tasks import cancel_and_wait
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import preferences_pb2 as pb

COLLECTION = "c"


def sampled(task_id: str, model: str = "chat") -> rec.PreferenceTaskRecord:
    spec = pb.PreferenceTaskSpec(
        prompt=[chat_pb2.ChatMessage(role="user", content="Say it")],
        samples=[
            pb.SampleSpec(
                model=model, count=2, sampling=sampling_pb2.SamplingParams(seed=3, max_tokens=12)
            )
        ],
    )
    return make_task(spec, COLLECTION, "task.spec", task_id=task_id)


class Bench:
    """Redis, a tokenizer, and shards and workers that come and go."""

    def __init__(self, redis: Redis, url: str, folder: Path) -> None:
        self.redis, self.url = redis, url
        self.settings = gateway_settings(folder, url)
        self.registry = Registry(redis)
        self.clients = StageClients(self.registry, self.settings, TOKEN)
        self.records = PreferenceRecords(redis, COLLECTION)
        self.queue = work_queue(redis)
        self.work = PreferenceWork(self.queue)

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[asyncio.Task[None]]:
        worker = PreferenceWorker(name, self.redis, self.registry, self.clients)
        task = asyncio.create_task(worker.run())
        yield task
        assert not task.done()
        await cancel_and_wait(task)

    @asynccontextmanager
    async def serving(self, shard: Shard) -> AsyncIterator[Shard]:
        replica = Replica(self.settings, self.url, "inference", "shard", shard_service(shard))
        await replica.start(bindings())
        yield shard
        await replica.stop()

    async def add(self, task: rec.PreferenceTaskRecord) -> str:
        item = await self.work.sample(COLLECTION, task.task_id)
        await self.records.create(task)
        return item

    async def until(self, task_id: str, state: int) -> rec.PreferenceTaskRecord:
        async with asyncio.timeout(PATIENCE_S):
            while (task := await self.records.get(task_id)).state != state:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return task

    async def in_state(self, item: str, state: str) -> ItemState:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await self.queue.find(item)
                if found is not None and found.state == state:
                    return found
                await asyncio.sleep(0.02)


@pytest.fixture
async def bench(redis_client: Redis, redis_server: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(redis_client, redis_server, tmp_path)
    service = tokenizer_service(ByteTokenizer())
    tokenizer = Replica(bench.settings, redis_server, "tokenizer", "tokenizer", service)
    await tokenizer.start({})
    yield bench
    await tokenizer.stop()
    await bench.clients.close()


async def test_a_model_that_comes_late_is_waited_for(bench: Bench) -> None:
    item = await bench.add(sampled("t"))
    async with bench.worker("w"):
        found = await bench.in_state(item, "delayed")
        assert "no shard serves a model called 'chat'" in found.reason
        assert (await bench.records.get("t")).state == pb.PREFERENCE_TASK_STATE_SAMPLING
        async with bench.serving(Shard()):
            task = await bench.until("t", pb.PREFERENCE_TASK_STATE_OPEN)
    assert task.responses[0].text == script_text(3, 0, 12)
    assert len(task.responses) == 2


async def test_work_that_a_worker_left_is_done_once(bench: Bench) -> None:
    async with bench.serving(Shard(delay_s=30)) as shard:
        item = await bench.add(sampled("t"))
        async with bench.worker("first"), asyncio.timeout(PATIENCE_S):
            while not shard.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        found = await bench.queue.find(item)
        assert found is not None
        assert (found.state, found.attempts) == ("waiting", 0)  # given back, no attempt lost
        shard.delay_s = 0
        async with bench.worker("second"):
            task = await bench.until("t", pb.PREFERENCE_TASK_STATE_OPEN)
        assert len(task.responses) == 2


async def test_what_cannot_be_done_says_so_and_can_be_tried_again(bench: Bench) -> None:
    async with bench.serving(Shard(end_after=-1)) as shard, bench.worker("w"):  # says nothing
        item = await bench.add(sampled("t"))
        task = await bench.until("t", pb.PREFERENCE_TASK_STATE_FAILED)
        assert "4 empty" in task.error
        async with asyncio.timeout(PATIENCE_S):
            while not (letters := await bench.queue.dead_letters()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert letters[0].id == item
        shard.end_after = 0
        assert await bench.queue.requeue(item)
        task = await bench.until("t", pb.PREFERENCE_TASK_STATE_OPEN)
        assert task.error == ""


async def test_a_creator_that_died_before_its_task_was_there(bench: Bench) -> None:
    """Its work is given up in the end; the same call made again is carried out."""
    task = sampled("t")
    item = await bench.work.sample(COLLECTION, "t")
    lease = await bench.queue.claim("w", wait_s=0)
    assert lease is not None
    await bench.queue.fail(lease, "there is no task", retry=False)
    assert await bench.add(task) == item
    async with bench.serving(Shard()), bench.worker("w"):
        await bench.until("t", pb.PREFERENCE_TASK_STATE_OPEN)


async def test_a_task_that_is_deleted_meanwhile_stays_away(bench: Bench) -> None:
    async with bench.serving(Shard(delay_s=0.02)) as shard:
        item = await bench.add(sampled("t"))
        async with bench.worker("w"), asyncio.timeout(PATIENCE_S):
            while not shard.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await bench.records.remove("t")
            await bench.in_state(item, "completed")
    assert (await bench.records.counts()).total == 0


async def test_judgements_outlive_redis(tmp_path: Path) -> None:
    """kill -9 right after the answer: the judgement, the lease and the fence are there again."""
    server = EmbeddedRedis(tmp_path / "r")
    redis = connect(server.start())
    records = PreferenceRecords(redis, COLLECTION)
    for name in ("a", "b"):
        responses = [pb.PreferenceResponse(response_id=r, text=r) for r in ("x", "y")]
        prompt = [chat_pb2.ChatMessage(role="user", content="p")]
        spec = pb.PreferenceTaskSpec(prompt=prompt, responses=responses, wanted_judgement_count=2)
        await records.create(make_task(spec, COLLECTION, "task.spec", task_id=name))
    first = await records.lease("ann", lease_s=600)
    held = await records.lease("ann", lease_s=600)
    assert first
    assert held
    judgement = rec.JudgementRecord(
        task_id="a",
        annotator="ann",
        source=pb.JUDGEMENT_SOURCE_HUMAN,
        ranking=tiers([["x"], ["y"]]),
    )
    await records.submit(judgement, first.fence)
    pid = server.pid
    assert pid is not None
    process = psutil.Process(pid)
    process.kill()
    await asyncio.to_thread(psutil.wait_procs, [process], 10)
    server.stop()
    again = EmbeddedRedis(tmp_path / "r")
    await redis.aclose()
    redis = connect(again.start())
    try:
        records = PreferenceRecords(redis, COLLECTION)
        assert [j async for part in records.judgements(1) for j in part] == [judgement]
        assert await records.shown("b", held.fence) == held.shown
        theirs = await records.lease("bob", lease_s=600)
        assert theirs is not None
        assert (theirs.task.task_id, theirs.fence) == ("a", held.fence + 1)
        assert await records.lease("bob", lease_s=600) is None  # "b" is ann's still
    finally:
        await redis.aclose()
        again.stop()


async def test_half_an_answer_is_none(bench: Bench) -> None:
    """A shard that drains in the middle: the answer is asked for again, not cut short."""

    class Draining(Shard):
        drains = True

        def _last(self, reason: int, prompt: int, made: int) -> Any:
            if self.drains:
                reason = sampling_pb2.FINISH_REASON_CANCELLED
            return super()._last(reason, prompt, made)

    async with bench.serving(Draining()) as shard, bench.worker("w"):
        assert isinstance(shard, Draining)
        item = await bench.add(sampled("t"))
        found = await bench.in_state(item, "delayed")
        assert "ended its answer early" in found.reason
        shard.drains = False
        task = await bench.until("t", pb.PREFERENCE_TASK_STATE_OPEN)
    assert task.responses[0].text == script_text(3, 0, 12)
