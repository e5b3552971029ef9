"""A policy sampled through Redis by shards that serve people too: the same answers, once each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file, save_file

import engines
import policy_job
import trainings
from checkpoints import random_llama
from patience import PATIENCE_S
from plinth.engine.request import Sampling
from plinth.engine.weight_set import engine_over
from plinth.inference.client import EngineClient
from plinth.inference.rollouts import RolloutConsumer
from plinth.internal.v1 import rollouts_pb2 as pb
from plinth.models.adapters.lora import LoraConfig, adapters, attach
from plinth.models.decoder import Decoder
from plinth.models.weights import load_decoder
from plinth.shared import rollout_results
from plinth.shared.errors import (
    ERROR_TYPES,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.rollout_results import RolloutResults
from plinth.shared.rollouts import StopAsked, rollout_queue
from plinth.shared.storage import Storage
from plinth.shared.storage_url import open_storage
from plinth.shared.tasks import cancel_and_wait
from plinth.trainer.loop import Group
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.policy.rollouts import EngineSampler, Order, Rollout, check_fresh
from plinth.trainer.policy.run import optimise_policy
from plinth.trainer.policy.shards import ShardSampler

T = TypeVar("T")
SAMPLING = Sampling(1.0, max_tokens=12, stop_ids=frozenset({7}))
ORDERS = [Order(group, (3 + group, 9, 4), 3, 1000 + group) for group in range(6)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("policy") / "llama", seed=5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("served") / "llama", seed=6)


@asynccontextmanager
async def shard(redis: Redis, served: Path, name: str = "s1", **options: Any) -> AsyncIterator[Any]:
    """(its consumer, its engine's client)"""
    client = EngineClient(engines.engine(served))
    client.start()
    settings = {"device": "cpu", "kv_bytes": 1 << 26, "idle_s": 60.0, **options}
    results = RolloutResults(lambda: open_storage(f"file://{served.parent / 'store'}"))
    consumer = RolloutConsumer(name, rollout_queue(redis), client, results, **settings)
    running = asyncio.create_task(consumer.run())
    try:
        yield consumer, client
    finally:
        await cancel_and_wait(running)
        await client.stop()


def no_store() -> Storage:
    raise AssertionError("what is small goes through the queue alone")


async def with_sampler(
    decoder: Decoder,
    folder: Path,
    url: str,
    work: Callable[[ShardSampler], T],
    storage: Callable[[], Storage] = no_store,
    **options: Any,
) -> T:
    """`work` in a thread, as the trainer's worker does it."""

    def run() -> T:
        sampler = ShardSampler(decoder, folder / "weights", "run-1", url, storage, **options)
        try:
            return work(sampler)
        finally:
            sampler.close()

    return await asyncio.to_thread(run)


def here(decoder: Decoder, revision: int, sampling: Sampling = SAMPLING) -> list[Rollout]:
    """The same by an engine of this process: the independent truth."""
    sampler = EngineSampler(engine_over(decoder, running=8, waiting=64, device="cpu"))
    sampler.renew(revision)
    return sampler.sample(ORDERS, sampling)


async def test_shards_answer_as_an_engine_in_the_process_does(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    """Bit for bit, over a change of weights, and whoever of two shards took which task."""
    decoder = load_decoder(policy)

    def work(sampler: ShardSampler) -> list[list[Rollout]]:
        made = []
        for revision in range(2):
            digest = sampler.renew(revision)
            rollouts = sampler.sample(ORDERS, SAMPLING)
            check_fresh(rollouts, revision, {digest})
            made.append(rollouts)
            with torch.no_grad():
                for parameter in decoder.parameters():
                    parameter.mul_(1.01)
        return made

    async with shard(redis_client, served, "s1"), shard(redis_client, served, "s2"):
        first, second = await with_sampler(decoder, tmp_path, redis_server, work)
    again = load_decoder(policy)
    assert first == here(again, 0)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.mul_(1.01)
    assert second == here(again, 1)
    assert [(r.group, r.sample_index) for r in first] == [
        (g, i) for g in range(6) for i in range(3)
    ]
    assert (await rollout_queue(redis_client).inspect()).pending == 0


async def test_large_answers_go_through_the_store(
    redis_client: Redis,
    redis_server: str,
    tmp_path: Path,
    policy: Path,
    served: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, and the queue holds their names alone; a shard without that store says so."""
    monkeypatch.setattr(rollout_results, "INLINE_BYTES", 100)

    def ask(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        return sampler.sample(ORDERS, SAMPLING)

    def store() -> Storage:
        return open_storage(f"file://{served.parent / 'store'}")

    async with shard(redis_client, served):
        found = await with_sampler(load_decoder(policy), tmp_path / "a", redis_server, ask, store)
    assert found == here(load_decoder(policy), 0)
    keys = [key async for key in redis_client.scan_iter("*result*")]
    sizes = [len(await redis_client.hget(key, "value")) for key in keys]
    assert len(sizes) == len(ORDERS)
    assert max(sizes) < 300
    elsewhere = open_storage(f"file://{tmp_path / 'elsewhere'}")
    with pytest.raises(NotFound, match="must have one store"):
        await with_sampler(
            load_decoder(policy), tmp_path / "b", redis_server, ask, lambda: elsewhere
        )


async def test_shards_answer_with_adapters_merged(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    """Bit for bit as the engine beside the trainer, which merges them too."""

    def adapted() -> Decoder:
        decoder = load_decoder(policy)
        attach(decoder, LoraConfig(rank=4, alpha=16), seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for adapter in adapters(decoder).values():
                adapter.b.normal_(0.0, 0.1, generator=generator)
        return decoder

    def ask(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        return sampler.sample(ORDERS, SAMPLING)

    async with shard(redis_client, served):
        found = await with_sampler(adapted(), tmp_path, redis_server, ask)
    assert found == here(adapted(), 0)
    assert [r.response for r in found] != [r.response for r in here(load_decoder(policy), 0)]


async def test_the_same_question_is_answered_once(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    """A run that crashed and asks again gets what was answered, though no shard is left."""
    decoder = load_decoder(policy)

    def ask(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        return sampler.sample(ORDERS, SAMPLING)

    async with shard(redis_client, served):
        first = await with_sampler(decoder, tmp_path / "a", redis_server, ask)
    again = await with_sampler(decoder, tmp_path / "b", redis_server, ask, patience_s=5)
    assert again == first


async def test_a_tensor_that_was_corrupted_on_its_way_is_refused(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    def work(sampler: ShardSampler) -> None:
        sampler.renew(0)
        (file,) = (tmp_path / "weights").glob("*/model.safetensors")
        tensors = load_file(file)
        name = sorted(tensors)[3]
        tensors[name].view(-1)[0] += 1e-3
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(FailedPrecondition, match="changed on their way"):
            sampler.sample(ORDERS[:1], SAMPLING)

    async with shard(redis_client, served):
        await with_sampler(load_decoder(policy), tmp_path, redis_server, work)
    (letter,) = await rollout_queue(redis_client).dead_letters()
    assert "sha256:" in letter.reason


async def test_a_prompt_that_can_not_be_answered_ends_the_wait_with_the_reason(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    def work(sampler: ShardSampler) -> None:
        sampler.renew(0)
        long = [ORDERS[0], Order(1, (3,) * 100_000, 1, 5)]
        with pytest.raises(FailedPrecondition, match=r"given up.*tokens"):
            sampler.sample(long, SAMPLING)

    async with shard(redis_client, served):
        await with_sampler(load_decoder(policy), tmp_path, redis_server, work)


async def test_without_a_shard_it_waits_and_says_so_or_stops_when_asked(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path
) -> None:
    def ask(sampler: ShardSampler) -> None:
        sampler.renew(0)
        sampler.sample(ORDERS, SAMPLING)

    decoder = load_decoder(policy)
    with pytest.raises(Unavailable, match="is a model served"):
        await with_sampler(decoder, tmp_path, redis_server, ask, patience_s=0.5)
    with pytest.raises(StopAsked):
        await with_sampler(decoder, tmp_path, redis_server, ask, stop=lambda: True)
    info = await rollout_queue(redis_client).inspect()
    assert (info.length, info.pending, info.delayed) == (0, 0, 0)


async def test_a_shard_that_goes_in_the_middle_loses_nothing(
    redis_client: Redis,
    redis_server: str,
    tmp_path: Path,
    policy: Path,
    served: Path,
) -> None:
    """It is stopped while it samples; another one makes the same answers."""
    decoder = load_decoder(policy)
    long = replace(SAMPLING, max_tokens=40, stop_ids=frozenset())

    def ask(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        return sampler.sample(ORDERS, long)

    asking = asyncio.create_task(with_sampler(decoder, tmp_path, redis_server, ask))
    async with shard(redis_client, served, "s1") as (consumer, _), asyncio.timeout(PATIENCE_S):
        while not consumer.running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    async with shard(redis_client, served, "s2"):
        assert await asking == here(load_decoder(policy), 0, long)


async def test_people_who_chat_go_first(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    """While a stream runs, the policy gets one step in nine, and both end with their own tokens."""
    decoder = load_decoder(policy)
    turns: list[str] = []

    def ask(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        return sampler.sample(ORDERS, SAMPLING)

    async with shard(redis_client, served) as (consumer, client):
        timed = client._timed

        def noted(engine, times):
            turns.append("chat" if engine is client._engine else "policy")
            return timed(engine, times)

        client._timed = noted
        asked = engines.Request(
            "chat", (5, 6), engines.BINDING, Sampling(0.0, max_tokens=100, speculation="off")
        )
        asking = asyncio.create_task(with_sampler(decoder, tmp_path, redis_server, ask))
        while not consumer.running:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        chat = [t.id async for event in client.stream(asked) for t in event.tokens]
        rollouts = await asking
    assert rollouts == here(load_decoder(policy), 0)
    alone, _ = engines.complete(engines.engine(served), [(5, 6)], asked.sampling)
    assert chat == [token.id for token in alone[0]]
    first, last = turns.index("chat"), len(turns) - turns[::-1].index("chat")
    between = turns[first:last]
    assert between.count("policy") <= -(-between.count("chat") // 8)


async def test_weights_that_nobody_asks_for_are_let_go(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    def ask(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        return sampler.sample(ORDERS[:1], SAMPLING)

    async with shard(redis_client, served, idle_s=0.01) as (_, client):
        await with_sampler(load_decoder(policy), tmp_path, redis_server, ask)
        async with asyncio.timeout(PATIENCE_S):
            while client.lent is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_policy_whose_engine_broke_is_taken_anew(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    """Its task is tried again on an engine that works; the shard lost none of its health."""

    def ask(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        return sampler.sample(ORDERS[:1], SAMPLING)

    async with shard(redis_client, served) as (_, client):
        timed, broken = client._timed, []

        def breaks_once(engine, times):
            if engine is not client._engine and not broken:
                broken.append(engine)
                raise RuntimeError("the device is lost")
            return timed(engine, times)

        client._timed = breaks_once
        rollouts = await with_sampler(load_decoder(policy), tmp_path, redis_server, ask)
        client.check()
        assert client.lent is not broken[0]
    assert rollouts == [r for r in here(load_decoder(policy), 0) if r.group == ORDERS[0].group]


async def test_what_may_pass_is_tried_again_and_what_can_not_is_told_at_once(
    redis_client: Redis, policy: Path, served: Path
) -> None:
    """Each kind of error, once; by its own word for whether it may pass."""
    errors = [kind("x") for kind in ERROR_TYPES.values()]
    errors.append(ResourceExhausted("the queue is full", retry_after_s=0.1))
    tasks = {f"{n}": pb.RolloutTask(prompt_ids=[n + 2], max_tokens=2) for n in range(len(errors))}
    queue, states = rollout_queue(redis_client), {}
    async with shard(redis_client, served) as (_, client), asyncio.timeout(PATIENCE_S):
        answers, to_raise = client.answers, dict(enumerate(errors, 2))

        async def fails_once(requests: Sequence[engines.Request]) -> Any:
            if (error := to_raise.pop(requests[0].ids[0], None)) is not None:
                raise error
            return await answers(requests)

        client.answers = fails_once
        for id, task in tasks.items():
            task.samples, task.temperature, task.policy.folder = 1, 1.0, str(policy)
            await queue.add(id, task.SerializeToString())
        while len(states) < len(tasks):
            for id in tasks:
                if (found := await queue.find(id)) and found.state in ("completed", "dead"):
                    states[id] = found.state
            await asyncio.sleep(0.01)
    assert states == {
        str(n): "completed" if error.transient else "dead" for n, error in enumerate(errors)
    }


async def test_weights_that_a_shard_can_not_see_yet_are_looked_for_again(
    redis_client: Redis, redis_server: str, tmp_path: Path, policy: Path, served: Path
) -> None:
    """A folder that arrives late, as on shared storage."""

    def work(sampler: ShardSampler) -> list[Rollout]:
        sampler.renew(0)
        folder = Path(sampler._weights.folder)
        away = folder.rename(tmp_path / "away")
        sampler.start(ORDERS[:1], SAMPLING)
        (id,) = sampler._started

        async def failed_once() -> None:
            queue = sampler._tasks._queue
            while not ((found := await queue.find(id)) and found.reason):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        sampler._runner.run(asyncio.wait_for(failed_once(), PATIENCE_S))
        away.rename(folder)
        return [rollout for some in sampler.arrivals() for rollout in some]

    async with shard(redis_client, served):
        rollouts = await with_sampler(load_decoder(policy), tmp_path, redis_server, work)
    assert rollouts == [r for r in here(load_decoder(policy), 0) if r.group == ORDERS[0].group]


async def test_a_message_that_is_no_task_is_buried(redis_client: Redis, served: Path) -> None:
    queue = rollout_queue(redis_client)
    await queue.add("junk", b"\xff\xff")
    await queue.add("empty", pb.RolloutTask().SerializeToString())
    async with shard(redis_client, served), asyncio.timeout(PATIENCE_S):
        while len(letters := await queue.dead_letters()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert any("names no weights" in letter.reason for letter in letters)


async def test_a_job_that_samples_by_shards_ends_with_the_local_ones_weights(
    redis_client: Redis,
    redis_server: str,
    tmp_path: Path,
    served: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole job, as its worker runs it: PPO against a reward model, bit for bit."""
    monkeypatch.setenv("PLINTH_REDIS_URL", redis_server)
    dataset, start, reward = policy_job.made(tmp_path)
    ends = []
    async with shard(redis_client, served, "s1"), shard(redis_client, served, "s2"):
        for rollouts in ("local", "shards"):
            config = policy_job.planned(
                dataset,
                start,
                reward,
                objective="ppo",
                policy={"samples": 1, "rollouts": rollouts},
            )
            job = JobFolder(trainings.job(tmp_path / rollouts, config))
            status = await asyncio.to_thread(optimise_policy, config, job, Group())
            assert status == "succeeded", job.outcome()
            assert not (job.path / "weights").exists()
            ends.append(load_file(job.model / "model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


async def test_a_job_one_step_ahead_leaves_nothing_behind(
    redis_client: Redis,
    redis_server: str,
    tmp_path: Path,
    served: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends; and stopped in the middle, the batch that it had asked for is asked for no more."""
    monkeypatch.setenv("PLINTH_REDIS_URL", redis_server)
    dataset, start, reward = policy_job.made(tmp_path)
    config = policy_job.planned(dataset, start, reward, policy={"rollouts": "shards", "ahead": 1})

    class Stopped(JobFolder):
        def requested(self) -> str | None:
            progress = self.progress()
            return "cancel" if progress and progress.done >= 2 else None

    queue = rollout_queue(redis_client)
    async with shard(redis_client, served):
        for name, kind, status in (("a", JobFolder, "succeeded"), ("b", Stopped, "cancelled")):
            job = kind(trainings.job(tmp_path / name, config))
            assert await asyncio.to_thread(optimise_policy, config, job, Group()) == status
            assert not (job.path / "weights").exists()
        async with asyncio.timeout(PATIENCE_S):
            while (info := await queue.inspect()).length or info.pending or info.delayed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
