"""The queue on a real Redis: each promise of its docstrings, then random runs against a model."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.shared.connection import connect
from plinth.shared.errors import Cancelled, InvalidArgument, ResourceExhausted, Unavailable
from plinth.shared.queue import Lease, LeaseLost, Queue, QueueInfo, queue_names


@pytest.fixture
def queue(redis_client: Redis) -> Queue:
    return Queue(redis_client, "jobs", lease_s=30, max_attempts=3, backoff_s=30)


async def claim(queue: Queue, consumer: str = "a") -> Lease:
    lease = await queue.claim(consumer, wait_s=PATIENCE_S)
    assert lease is not None
    return lease


@dataclass
class Wait:
    """A claim that waits in Redis: at most for how long, and whether an item ended it."""

    block_ms: int
    woken: bool = False


def watched(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> list[Wait]:
    waits: list[Wait] = []
    read = redis.xread

    async def xread(streams: Any, *, count: int, block: int) -> Any:
        waits.append(wait := Wait(block))
        entries = await read(streams, count=count, block=block)
        wait.woken = bool(entries)
        return entries

    monkeypatch.setattr(redis, "xread", xread)
    return waits


async def lapse(redis: Redis, queue: Queue, *ids: str) -> None:
    """Time passes: the leases (and due times) of these items are in the past."""
    for key in (queue._keys.leases, queue._keys.delayed):
        for item in ids or [raw.decode() for raw in await redis.zrange(key, 0, -1)]:
            await redis.zadd(key, {item: 1}, xx=True)


async def test_add_claim_complete(redis_client: Redis, queue: Queue) -> None:
    assert await queue.add("j1", b"\x00payload", deadline_unix_s=time.time() + 60)
    assert not await queue.add("j1", b"other")
    lease = await claim(queue)
    assert (lease.id, lease.payload, lease.attempts, lease.fence) == ("j1", b"\x00payload", 1, 1)
    assert lease.deadline_unix_s == pytest.approx(time.time() + 60, abs=5)
    assert await queue.inspect() == QueueInfo(0, 1, 0, 0)
    assert await queue.claim("b", wait_s=0) is None
    await queue.complete(lease, b"done")
    await queue.complete(lease, b"done")  # sent twice by a broken connection
    assert await queue.result("j1") == b"done"
    assert not await queue.add("j1", b"again"), "a completed id must not run again"
    assert await queue.inspect() == QueueInfo(0, 0, 0, 0)
    assert await redis_client.xlen(queue._keys.stream) == 0
    assert await queue_names(redis_client) == ["jobs"]


async def test_lapsed_lease_goes_to_another_and_fences_the_first(
    redis_client: Redis, queue: Queue
) -> None:
    await queue.add("j1", b"1")
    first = await claim(queue, "a")
    await lapse(redis_client, queue)
    second = await claim(queue, "b")
    assert second.id == "j1" and second.attempts == 2 and second.fence > first.fence
    for stale in (
        queue.heartbeat(first),
        queue.complete(first, b"late"),
        queue.fail(first, "late", retry=True),
        queue.release(first),
    ):
        with pytest.raises(LeaseLost):
            await stale
    await queue.complete(second, b"right")
    with pytest.raises(LeaseLost):
        await queue.complete(first, b"late")
    assert await queue.result("j1") == b"right"


async def test_heartbeat_extends(redis_client: Redis, queue: Queue) -> None:
    await queue.add("j1", b"1")
    lease = await claim(queue)
    await lapse(redis_client, queue)
    await queue.heartbeat(lease)  # lapsed, but nobody took it: still ours
    assert await queue.claim("b", wait_s=0) is None


async def test_lease_lapses_by_the_clock(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = watched(redis_client, monkeypatch)
    queue = Queue(redis_client, "short", lease_s=0.15)
    await queue.add("j1", b"1")
    await claim(queue, "a")
    assert (await claim(queue, "b")).attempts == 2
    # A waiting consumer wakes for a lapsing lease.
    assert all(wait.block_ms <= 150 for wait in waits), waits


async def test_fail_backs_off_and_then_dies(redis_client: Redis, queue: Queue) -> None:
    await queue.add("j1", b"1")
    waits = []
    for attempt in (1, 2):
        lease = await claim(queue)
        assert lease.attempts == attempt
        await queue.fail(lease, f"broken {attempt}", retry=True)
        await queue.fail(lease, f"broken {attempt}", retry=True)  # sent twice
        assert await queue.inspect() == QueueInfo(0, 0, 1, 0)
        assert await queue.claim("a", wait_s=0) is None
        waits.append((await redis_client.zscore(queue._keys.delayed, "j1")) / 1000 - time.time())
        await lapse(redis_client, queue)
    assert waits == [pytest.approx(30, abs=5), pytest.approx(60, abs=5)]
    await queue.fail(await claim(queue), "broken 3", retry=True)
    assert await queue.inspect() == QueueInfo(0, 0, 0, 1)
    (letter,) = await queue.dead_letters(10)
    assert (letter.id, letter.reason, letter.payload, letter.attempts) == (
        "j1",
        "broken 3",
        b"1",
        3,
    )
    assert not await queue.add("j1", b"1")
    assert await queue.requeue("j1") and not await queue.requeue("j1")
    lease = await claim(queue)
    assert lease.attempts == 1 and lease.payload == b"1"


async def test_consumers_that_die_each_time_make_a_dead_letter(
    redis_client: Redis, queue: Queue
) -> None:
    await queue.add("poison", b"1")
    for _ in range(3):
        await claim(queue, "victim")
        await lapse(redis_client, queue)
    assert await queue.claim("a", wait_s=0) is None
    (letter,) = await queue.dead_letters(10)
    assert "attempt 3" in letter.reason and "victim" in letter.reason


async def test_fail_without_retry_and_deadline(redis_client: Redis, queue: Queue) -> None:
    await queue.add("bad", b"1")
    await queue.fail(await claim(queue), "bad spec", retry=False)
    await queue.add("late", b"2", deadline_unix_s=time.time() - 1)
    await queue.add("fine", b"3")
    assert (await claim(queue)).id == "fine"
    reasons = {letter.id: letter.reason for letter in await queue.dead_letters(10)}
    assert reasons == {"bad": "bad spec", "late": "deadline passed"}
    assert await queue.requeue("late")
    assert (await claim(queue)).id == "late"


async def test_release_is_first_in_line_and_no_attempt(redis_client: Redis, queue: Queue) -> None:
    for name in ("j1", "j2"):
        await queue.add(name, b"1")
    lease = await claim(queue)
    await queue.release(lease)
    await queue.release(lease)  # sent twice
    assert await queue.inspect() == QueueInfo(2, 0, 0, 0)
    again = await claim(queue, "b")
    assert (again.id, again.attempts) == ("j1", 1) and again.fence > lease.fence
    with pytest.raises(LeaseLost):
        await queue.heartbeat(lease)


async def test_cancel(redis_client: Redis, queue: Queue) -> None:
    await queue.add("waits", b"1")
    assert await queue.cancel("waits") and not await queue.cancel("waits")
    assert not await queue.add("waits", b"1"), "a late add must not bring it back"
    assert await queue.claim("a", wait_s=0) is None
    await queue.add("held", b"1")
    lease = await claim(queue)
    assert await queue.cancel("held")
    with pytest.raises(Cancelled):
        await queue.heartbeat(lease)
    await queue.fail(lease, "cancelled", retry=True)
    await queue.add("orphan", b"1")
    await claim(queue)
    await queue.cancel("orphan")
    await lapse(redis_client, queue)
    assert await queue.claim("a", wait_s=0) is None, "a cancelled item is not given out again"
    assert await queue.inspect() == QueueInfo(0, 0, 0, 0)
    states = [await queue.find(name) for name in ("waits", "held", "orphan", "other")]
    assert [state.state if state else None for state in states] == ["cancelled"] * 3 + [None]
    assert not await queue.cancel("other")


async def test_bounds_and_bad_arguments(redis_client: Redis) -> None:
    queue = Queue(redis_client, "small", max_length=2)
    await queue.add("j1", b"1")
    await queue.add("j2", b"1")
    with pytest.raises(ResourceExhausted) as full:
        await queue.add("j3", b"1")
    assert full.value.retry_after_s
    await queue.complete(await claim(queue), b"")
    assert await queue.add("j3", b"1")
    for bad in ("", "a b", "a:b", "{x}", "ä", "x" * 200, "a\n"):
        with pytest.raises(InvalidArgument):
            await queue.add(bad, b"1")
    with pytest.raises(InvalidArgument):
        await queue.add("big", bytes((4 << 20) + 1))
    with pytest.raises(InvalidArgument):
        Queue(redis_client, "a:b")


async def test_waiting_claim_wakes_for_an_add(
    redis_client: Redis, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_block_s", 4.0)  # it must not look again by itself before the add
    waits = watched(redis_client, monkeypatch)
    waiting = asyncio.create_task(queue.claim("a", wait_s=PATIENCE_S))
    async with asyncio.timeout(PATIENCE_S):
        while not waits:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await queue.add("j1", b"1")
    assert await waiting is not None
    assert waits[-1].woken, "found by looking again, not by waking"


async def test_cancelled_claims_lose_nothing(redis_client: Redis, queue: Queue) -> None:
    rng = random.Random(5)
    for i in range(30):
        await queue.add(f"j{i}", b"1")
    got = set()
    while len(got) < 30:
        task = asyncio.create_task(queue.claim("a", wait_s=1))
        await asyncio.sleep(rng.random() * 0.004)
        task.cancel()
        try:
            lease = await task
        except asyncio.CancelledError:
            continue
        assert lease is not None and lease.attempts == 1
        got.add(lease.id)
    assert (await queue.inspect()).pending == 30


async def test_idle_consumers_are_swept(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plinth.shared.queue._IDLE_CONSUMER_S", 0.0)
    first = Queue(redis_client, "jobs", lease_s=0.001)
    await first.claim("gone", wait_s=0)
    await asyncio.sleep(0.1)  # idle for longer than ten leases, by the server's clock
    await Queue(redis_client, "jobs", lease_s=0.001).claim("new", wait_s=0)
    names = [c["name"] for c in await redis_client.xinfo_consumers(first._keys.stream, "workers")]
    assert names == [b"new"]


async def test_unavailable_without_redis() -> None:
    client = connect("redis://127.0.0.1:1/0")
    queue = Queue(client, "jobs")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: queue.add("j1", b"1"),
        lambda: queue.claim("a", wait_s=0),
        lambda: queue.result("j1"),
        lambda: queue.dead_letters(1),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await call()
    await client.aclose()


async def test_the_age_of_the_oldest_that_waits(redis_client: Redis, queue: Queue) -> None:
    async def oldest() -> float:
        return (await queue.inspect()).oldest_s

    async def second() -> int:
        return int((await redis_client.time())[0])

    assert await oldest() == 0.0
    await queue.add("j1", b"1")
    began = await second()
    async with asyncio.timeout(PATIENCE_S):
        while await second() < began + 2:  # the server's clock counts  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await queue.add("j2", b"2")
    assert 1.0 < await oldest() < 5
    lease = await claim(queue)
    assert lease.id == "j1"
    assert await oldest() < 1.0, "only j2 waits now"
    await queue.release(lease)
    assert await oldest() > 1.0, "given back, it has waited all the time"
    lease = await claim(queue)
    await lapse(redis_client, queue)
    assert await oldest() > 1.0, "its holder is gone: it waits"
    for _ in range(2):
        await queue.complete(await claim(queue), b"")
    assert await oldest() == 0.0
