"""Runs, queues and Redis as the coordinator tells of them, on a real Redis."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import REGISTRY
from redis.asyncio import Redis

from coordinator_replica import Coordinator, states
from plinth.coordinator import metrics
from plinth.shared.intake import REASONS
from plinth.shared.queue import Queue
from scripted_stages import World


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"plinth_{name}", labels)


async def test_each_state_of_each_queue(redis_client: Redis) -> None:
    queue = Queue(redis_client, "watched", max_attempts=1)
    for item in ("a", "b", "c", "d"):
        await queue.add(item, b"")
    dying = await queue.claim("me", wait_s=1)
    assert dying is not None
    await queue.fail(dying, "it is wrong", retry=False)
    assert await queue.claim("me", wait_s=1) is not None
    await metrics.look(redis_client)
    states = ("waiting", "leased", "delayed", "dead")
    counted = [sample("queue_items", queue="watched", state=state) for state in states]
    assert counted == [2, 1, 0, 1]
    assert (sample("queue_oldest_waiting_seconds", queue="watched") or 0) >= 0


async def test_what_redis_holds_and_whether_it_writes_it_down(redis_client: Redis) -> None:
    await redis_client.config_set("maxmemory", 123_000_000)
    try:
        await metrics.look(redis_client)
        assert sample("redis_memory_limit_bytes") == 123_000_000
        assert 100_000 < (sample("redis_memory_used_bytes") or 0) < 123_000_000
        assert sample("redis_durable") == 1
        await redis_client.config_set("appendonly", "no")
        await metrics.look(redis_client)
        assert sample("redis_durable") == 0
    finally:
        await redis_client.config_set("appendonly", "yes")
        await redis_client.config_set("maxmemory", 0)


PROMPTS = """
name: p
steps:
  prompts:
    kind: prompts
    topics: [a, b, c, C, " c"]
    constraints: [{name: few, ask: Few words., checks: [{kind: max_words, n: 20}]}]
    held_out: 1
"""


async def test_what_a_step_took_and_left_out_is_counted_once(
    redis_client: Redis, redis_server: str, tmp_path: Path
) -> None:
    def counted(reason: str) -> float | None:
        return sample("data_items_left_out_total", step_kind="prompts", reason=reason)

    def taken() -> float | None:
        return sample("data_items_taken_total", step_kind="prompts")

    before, repeated = taken(), counted("repeated")
    assert before is not None
    assert repeated is not None
    async with World(tmp_path, redis_server) as world:
        coordinator = Coordinator(world, "one")
        await coordinator.start()
        for run_id, state in (("r1", "SUCCEEDED"), ("r2", "REUSED")):
            await coordinator.submit(run_id, PROMPTS)
            assert set(states(await coordinator.end(run_id))) == {state}
            assert (taken(), counted("repeated")) == (before + 3, repeated + 2)
        await coordinator.stop()
    assert [counted(reason) for reason in REASONS if reason != "repeated"] == [0] * 5


def test_it_is_counted_by_few_names() -> None:
    """What was left out is told in words that hold lengths and file names; a series has none."""
    words = {f"of kind .x{number}": 1 for number in range(50)} | {"longer than 77 tokens": 3}
    intake = {"unit": "files", "taken": 2, "left_out": words, "noted": {"cut": 1}}
    before = {reason: _left_out(reason) for reason in REASONS}
    metrics.took("data", {"intake": [intake]})
    metrics.took("data", {})  # a step that counts nothing
    more = {reason: _left_out(reason) - before[reason] for reason in REASONS}
    assert more == {**dict.fromkeys(REASONS, 0.0), "unread": 50.0, "too_long": 3.0}


def _left_out(reason: str) -> float:
    found = sample("data_items_left_out_total", step_kind="data", reason=reason)
    assert found is not None
    return found
