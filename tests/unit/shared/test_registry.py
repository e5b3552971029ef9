"""The replica registry on a real Redis."""

from __future__ import annotations

import json

import pytest
from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import connect
from plinth.shared.errors import DataLoss, InvalidArgument, Unavailable
from plinth.shared.registry import Registry, Replica


async def test_announce_replaces_and_withdraws(redis_client: Redis) -> None:
    registry = Registry(redis_client)
    bindings = [{"model": "chat", "context_length": 2048}]
    fields = {"bindings": json.dumps(bindings), "running": "2", "waiting": "3", "old": "x"}
    await registry.announce("inference", "b", "127.0.0.1:2", fields)
    await registry.announce("inference", "a", "127.0.0.1:1", {})
    await registry.announce("trainer", "c", "127.0.0.1:3", {})
    first, second = await registry.replicas("inference")
    assert first == Replica("inference", "a", "127.0.0.1:1", {})
    assert (first.load, first.bindings) == (0, [])
    assert (second.load, second.bindings, second.address) == (5, bindings, "127.0.0.1:2")
    await registry.announce("inference", "b", "127.0.0.1:9", {"running": "1"})
    second = (await registry.replicas("inference"))[1]
    assert second.fields == {"running": "1"} and second.address == "127.0.0.1:9"
    await registry.withdraw("inference", "b")
    await registry.withdraw("inference", "b")
    assert [r.id for r in await registry.replicas("inference")] == ["a"]
    assert await registry.replicas("reward") == []


async def test_entries_lapse(redis_client: Redis) -> None:
    registry = Registry(redis_client, ttl_s=30)
    await registry.announce("inference", "a", "x:1", {})
    assert 25 < await redis_client.ttl(redis_keys.replica("inference", "a")) <= 30
    # The replica was silent for longer than that: its hash is gone, its place in the index due.
    await redis_client.delete(redis_keys.replica("inference", "a"))
    await redis_client.zadd(redis_keys.replicas("inference"), {"a": 1})
    assert await registry.replicas("inference") == []
    await registry.announce("inference", "b", "x:2", {})
    assert await redis_client.zrange(redis_keys.replicas("inference"), 0, -1) == [b"b"]


async def test_last_answer_when_redis_is_gone(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(redis_client)
    await registry.announce("inference", "a", "x:1", {})
    known = await registry.replicas("inference")
    gone = connect("redis://127.0.0.1:1/0")
    monkeypatch.setattr(registry, "_redis", gone)
    assert await registry.replicas("inference") == known
    with pytest.raises(Unavailable):
        await registry.replicas("trainer")
    with pytest.raises(Unavailable):
        await Registry(gone).announce("inference", "a", "x:1", {})
    await gone.aclose()


async def test_bad_words(redis_client: Redis) -> None:
    for stage, replica in (("a:b", "x"), ("a", "x{y}"), ("", "x"), ("a", "")):
        with pytest.raises(InvalidArgument):
            await Registry(redis_client).announce(stage, replica, "x:1", {})
    for text in ("{", '{"a": 1}'):
        with pytest.raises(DataLoss):
            _ = Replica("inference", "a", "x:1", {"bindings": text}).bindings
