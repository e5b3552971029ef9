"""Plinth's state in Redis, taken at one instant and taken up again."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.cluster.backup import freeze, redis_state
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.coordinator.leader import LeaderLease
from plinth.shared import redis_keys
from plinth.shared.connection import connect, connect_blocking
from plinth.shared.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    PlinthError,
)
from plinth.shared.queue import LeaseLost, Queue
from plinth.shared.registry import Registry
from plinth.shared.tasks import cancel_and_wait


@pytest.fixture
def client(redis_server: str, redis_client: Redis) -> Iterator[redis.Redis]:
    connected = connect_blocking(redis_server)
    yield connected
    connected.close()


def taken(client: redis.Redis, limit_s: float = 20) -> io.BytesIO:
    """The packed state."""
    spool, packed = io.BytesIO(), io.BytesIO()
    found = redis_state.take(client, spool, limit_s=limit_s, told=lambda _: None)
    redis_state.pack(spool, packed, found)
    packed.seek(0)
    return packed


def put_back(client: redis.Redis, packed: io.BytesIO) -> None:
    client.flushall()
    redis_state.put(client, redis_state.unpack(packed), lambda _: None)
    redis_state.adopt(client)


def family_of(key: str) -> str:
    parsed = redis_keys.parse_key(key)
    assert parsed is not None, key
    assert parsed[0] == redis_keys.SCHEMA
    return parsed[1]


def test_every_key_that_plinth_writes_has_a_family() -> None:
    queue, preferences = redis_keys.QueueKeys("q"), redis_keys.PreferenceKeys("c")
    written = [
        redis_keys.replica("s", "r"), redis_keys.replicas("s"), redis_keys.lease("l"),
        redis_keys.fence("l"), redis_keys.run("r"), redis_keys.run_log("r"),
        redis_keys.run_number(), redis_keys.runs(), redis_keys.active_runs(),
        redis_keys.run_events(), redis_keys.job("j"), redis_keys.jobs(),
        redis_keys.job_changes(), redis_keys.job_events("j"), redis_keys.api_keys(),
        redis_keys.key_creation("k"),
        redis_keys.quota("t"),
        redis_keys.rewards_done("r"), redis_keys.canary("c"), redis_keys.canary("c", "answers"),
        redis_keys.queues(), queue.stream, queue.items, queue.payloads, queue.leases,
        queue.delayed, queue.dead, queue.cancelled, queue.fence, queue.result("i"),
        redis_keys.preference_collections(), preferences.tasks, preferences.open,
        preferences.leases, preferences.held, preferences.judgements, preferences.counters,
        preferences.snapshots, preferences.task("t"), preferences.nonce("a"),
    ]  # fmt: skip
    assert {family_of(key) for key in written} == set(redis_keys.FAMILIES)
    functions = {
        name
        for name, value in vars(redis_keys).items()
        if callable(value) and getattr(value, "__module__", "") == redis_keys.__name__
    }
    # A new function must be added above.
    assert functions == {
        "parse_key", "check_part", "replica", "replicas", "lease", "fence", "run", "runs",
        "active_runs", "run_events", "job", "jobs", "job_changes", "job_events", "api_keys",
        "quota", "rewards_done", "canary", "queues", "QueueKeys", "preference_collections",
        "PreferenceKeys", "run_log", "run_number", "key_creation",
    }  # fmt: skip
    for mark in (
        *(redis_keys.SCHEMA_MARK, redis_keys.RELEASE_MARK),
        *(redis_keys.RESTORING_MARK, redis_keys.BACKUP_MARK),
    ):
        assert redis_keys.parse_key(mark) is None


async def test_a_queue_in_full_work_is_taken_at_one_instant(
    redis_server: str, client: redis.Redis
) -> None:
    """Producers and consumers go on while it is read. What comes back is a queue in which every
    item that was accepted by then is done or gets done, once; and none is half there."""
    working = connect(redis_server)
    queue = Queue(working, "work", lease_s=30)
    accepted: list[str] = []
    stop = asyncio.Event()

    async def produce(who: int) -> None:
        number = 0
        while not stop.is_set():
            await queue.add(f"{who}-{number}", b"payload" * 50)
            accepted.append(f"{who}-{number}")
            number += 1

    async def consume(who: int) -> None:
        while not stop.is_set():
            if (lease := await queue.claim(f"c{who}", wait_s=0.2)) is None:
                continue
            if lease.fence % 7 == 0 and lease.attempts < 3:
                await queue.fail(lease, "again", retry=True)
            else:
                await queue.complete(lease, lease.id.encode())

    tasks = [asyncio.create_task(work(n)) for n in range(3) for work in (produce, consume)]
    async with asyncio.timeout(PATIENCE_S):
        while len(accepted) < 300:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    before = list(accepted)
    packed = await asyncio.to_thread(taken, client)
    stop.set()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(put_back, client, packed)

    again = Queue(working, "work", lease_s=30, backoff_s=0.01)
    ended_before = {id for id in accepted if await again.result(id) is not None}
    completed: list[str] = []
    info = await again.inspect()
    assert info.pending == 0
    while info.length + info.delayed:
        lease = await again.claim("successor", wait_s=2)
        assert lease is not None
        await again.complete(lease, b"later")
        completed.append(lease.id)
        info = await again.inspect()
    assert len(completed) == len(set(completed))
    assert not ended_before & set(completed)
    assert set(before) <= ended_before | set(completed)
    assert (await working.hlen(redis_keys.QueueKeys("work").payloads)) == 0
    await working.aclose()


async def test_a_lease_is_given_back_and_its_holder_of_before_refused(
    redis_client: Redis, client: redis.Redis
) -> None:
    queue = Queue(redis_client, "jobs", max_attempts=2)
    for id in ("first", "second", "dropped"):
        await queue.add(id, id.encode())
    lease = await queue.claim("dead", wait_s=1)
    assert lease is not None
    await queue.fail(lease, "oops", retry=True)
    held = [await queue.claim("dead", wait_s=3) for _ in range(3)]
    assert all(held)
    last = next(one for one in held if one and one.id == lease.id)
    assert last.attempts == 2  # its last one
    await queue.cancel("dropped")
    await asyncio.to_thread(put_back, client, await asyncio.to_thread(taken, client))

    state = await queue.find(last.id)
    assert state is not None and (state.state, state.attempts) == ("waiting", 1)
    claimed = [await queue.claim("heir", wait_s=1) for _ in range(3)]
    assert {one.id for one in claimed if one} == {"first", "second"}
    found = await queue.find("dropped")
    assert found is not None and found.state == "cancelled"
    for one in held:
        assert one is not None
        with pytest.raises(LeaseLost):
            await queue.complete(one, b"too late")
    for one in claimed:
        if one is not None:
            assert one.fence > redis_state.FENCE_GAP
            await queue.complete(one, b"done")
    info = await queue.inspect()
    assert (info.length, info.pending, info.delayed, info.dead) == (0, 0, 0, 0)


async def test_more_leases_than_one_script_gives_back(
    redis_client: Redis, client: redis.Redis
) -> None:
    queue = Queue(redis_client, "many", lease_s=600)
    for number in range(230):
        await queue.add(f"i{number}", b"")
    for _ in range(230):
        assert await queue.claim("dead", wait_s=1)
    before = int(client.get(redis_keys.QueueKeys("many").fence) or 0)
    await asyncio.to_thread(put_back, client, await asyncio.to_thread(taken, client))
    info = await queue.inspect()
    assert (info.length, info.pending) == (230, 0)
    after = int(client.get(redis_keys.QueueKeys("many").fence) or 0)
    assert after - before == redis_state.FENCE_GAP


async def test_the_next_leader_outranks_every_leader_of_before(
    redis_client: Redis, client: redis.Redis
) -> None:
    client.set(redis_keys.fence("runs"), 7)
    client.set(redis_keys.lease("runs"), "somebody|7", px=60_000)
    await asyncio.to_thread(put_back, client, await asyncio.to_thread(taken, client))
    assert client.get(redis_keys.lease("runs")) is None
    leading = asyncio.Event()
    lease = LeaderLease(redis_client, "me", ttl_s=5)
    fences = []

    async def work(leadership: Any) -> None:
        fences.append(leadership.fence)
        leading.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(lease.lead(work))
    await asyncio.wait_for(leading.wait(), PATIENCE_S)
    await cancel_and_wait(task)
    (fence,) = fences
    assert fence > 7 + redis_state.FENCE_GAP


async def test_what_is_about_living_processes_stays_out(
    redis_client: Redis, client: redis.Redis
) -> None:
    await Registry(redis_client, ttl_s=PATIENCE_S).announce("trainer", "t1", "127.0.0.1:1", {})
    client.hset(redis_keys.quota("acme"), "level", "1")
    client.set("somebody:else", "not ours")
    client.hset(redis_keys.api_keys(), "hash", "{}")
    packed = await asyncio.to_thread(taken, client)
    records = list(redis_state.unpack(packed))
    assert {record["key"] for record in records} == {redis_keys.api_keys()}


def test_what_is_not_known_is_refused(client: redis.Redis) -> None:
    client.set(f"{redis_keys.PREFIX}:telepathy:{{x}}", "1")
    with pytest.raises(FailedPrecondition, match="another version"):
        taken(client)
    client.flushall()
    client.set(f"plinth:{redis_keys.SCHEMA + 1}:runs:{{runs}}", "1")
    with pytest.raises(FailedPrecondition, match="newer Plinth") as caught:
        taken(client)
    assert "before the upgrade" in caught.value.message


def test_writers_go_on_when_it_is_over_and_when_it_failed(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pause that is left on outlasts the client's patience.
    monkeypatch.setattr(freeze, "PAUSE_S", 10 * PATIENCE_S)
    for number in range(2000):
        client.set(f"{redis_keys.PREFIX}:job:{{j{number}}}", b"x" * 100)
    taken(client)
    client.set(f"{redis_keys.PREFIX}:odd:x", "1")
    with pytest.raises(FailedPrecondition):
        taken(client)
    assert client.set("free", "1")
    assert client.get(redis_keys.BACKUP_MARK) is None


def test_a_pause_that_lapsed_is_not_trusted(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set(f"{redis_keys.PREFIX}:job:{{j}}", "1")
    monkeypatch.setattr(freeze, "PAUSE_S", 0.0)
    with pytest.raises(Aborted, match="too slow"):
        taken(client)


def test_writers_do_not_wait_for_ever(client: redis.Redis) -> None:
    client.set(f"{redis_keys.PREFIX}:job:{{j}}", "1")
    with pytest.raises(DeadlineExceeded, match="--max-pause"):
        taken(client, limit_s=0.0)


def test_one_backup_at_a_time(client: redis.Redis) -> None:
    with freeze.alone(client, 5.0), pytest.raises(Aborted, match="another backup"):
        taken(client)


async def test_a_pause_that_is_refused(
    redis_server: str, redis_client: Redis, client: redis.Redis
) -> None:
    """Without a platform nobody writes; with one, it says what to allow."""
    client.hset(redis_keys.api_keys(), "hash", "{}")
    client.acl_setuser(
        "modest", enabled=True, passwords=["+secret"], keys=["*"],
        commands=["+@all", "-client|pause"],
    )  # fmt: skip
    modest = connect_blocking(redis_server)
    modest.connection_pool.connection_kwargs.update(username="modest", password="secret")
    try:
        assert len(list(redis_state.unpack(await asyncio.to_thread(taken, modest)))) == 1
        await Registry(redis_client, ttl_s=PATIENCE_S).announce("trainer", "t1", "127.0.0.1:1", {})
        with pytest.raises(FailedPrecondition, match=r"\+client\|pause"):
            await asyncio.to_thread(taken, modest)
    finally:
        modest.close()
        client.acl_deluser("modest")


def test_a_replica_is_refused(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    client = connect_blocking(server.start())
    try:
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(FailedPrecondition, match="primary"):
            taken(client)
    finally:
        client.close()
        server.stop()


def test_the_reading_does_not_stop_readers(client: redis.Redis, redis_server: str) -> None:
    """While writers wait, a read is answered at once."""
    client.set("x", "1")
    other = connect_blocking(redis_server)
    with freeze.Freeze(client):
        assert other.get("x") == b"1"
        writer = threading.Thread(target=lambda: other.set("x", "2"))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert client.get("x") == b"1"
    writer.join(5)
    assert client.get("x") == b"2"
    other.close()


@pytest.mark.parametrize("harm", ["cut", "flipped", "shortened", "newer", "foreign"])
def test_a_damaged_file_is_refused(client: redis.Redis, harm: str) -> None:
    import gzip

    for number in range(50):
        client.set(f"{redis_keys.PREFIX}:job:{{j{number}}}", b"x" * 100)
    data = taken(client).getvalue()
    lines = gzip.decompress(data).splitlines(keepends=True)
    header = json.loads(lines[0])
    expected: type[PlinthError] = DataLoss
    if harm == "cut":
        data = data[: len(data) // 2]
    elif harm == "flipped":
        data = data[:60] + bytes([data[60] ^ 0xFF]) + data[61:]
    elif harm == "shortened":
        data = gzip.compress(b"".join(lines[:10] + lines[11:]))
    elif harm == "newer":
        lines[0] = json.dumps({**header, "key_schema": redis_keys.SCHEMA + 1}).encode() + b"\n"
        data, expected = gzip.compress(b"".join(lines)), FailedPrecondition
    else:
        lines[1] = json.dumps({"key": "session:1", "type": "string", "value": ""}).encode() + b"\n"
        data, expected = gzip.compress(b"".join(lines)), FailedPrecondition
    with pytest.raises(expected):
        list(redis_state.unpack(io.BytesIO(data)))
