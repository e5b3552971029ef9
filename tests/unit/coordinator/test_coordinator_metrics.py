"""Queues and Redis as the coordinator tells of them, on a real Redis."""

from __future__ import annotations

from prometheus_client import REGISTRY
from redis.asyncio import Redis

from plinth.coordinator import metrics
from plinth.shared.queue import Queue


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
