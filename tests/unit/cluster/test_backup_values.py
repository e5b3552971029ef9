"""Redis values of every type, read and put back: what the server says of them is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plinth.cluster.backup import values
from plinth.shared.connection import connect_blocking
from plinth.shared.errors import DataLoss


@pytest.fixture
def client(redis_server: str) -> Iterator[redis.Redis]:
    connected = connect_blocking(redis_server)
    connected.flushall()
    yield connected
    connected.close()


def told(client: redis.Redis) -> dict[bytes, Any]:
    """What the server itself says of every key, by commands that the code does not use: DUMP for
    what has one spelling, contents for the rest. Times of deliveries are left out."""
    found: dict[bytes, Any] = {}
    scans = {b"set": client.sscan_iter, b"hash": client.hscan_iter, b"zset": client.zscan_iter}
    for key in client.keys("*"):
        kind = client.type(key)
        if kind == b"stream":
            found[key] = stream_told(client, key)
        elif kind in scans:
            found[key] = sorted(scans[kind](key))
        else:
            found[key] = client.dump(key)
    return found


def stream_told(client: redis.Redis, key: bytes) -> dict[str, Any]:
    full: dict[str, Any] = client.xinfo_stream(key, full=True)
    del full["radix-tree-keys"], full["radix-tree-nodes"]
    # A pending entry whose entry was deleted can't be claimed on any server: it is gone.
    there = full["entries"]
    for group in full["groups"]:
        group["pending"] = [[p[0], p[1], p[3]] for p in group["pending"] if p[0] in there]
        del group["pel-count"]
        group["consumers"] = {
            consumer[b"name"]: [p[0] for p in consumer[b"pending"] if p[0] in there]
            for consumer in group["consumers"]
        }
    return full


def round_trip(client: redis.Redis) -> int:
    """Reads everything, spells it as JSON, empties the server and writes it back."""
    names = [key.decode() for key in client.keys("*")]
    lines = [json.dumps(record) for record in values.read_keys(client, names)]
    client.flushall()
    pipe = client.pipeline(transaction=False)
    for line in lines:
        values.write(pipe, json.loads(line))
    pipe.execute()
    return len(lines)


BYTES = st.binary(max_size=40)
SCORES = st.floats(allow_nan=False, width=64)
STREAM = st.tuples(
    st.lists(st.dictionaries(st.binary(min_size=1, max_size=8), BYTES, min_size=1), max_size=9),
    st.integers(0, 9),  # entries that are read by the group
    st.sets(st.integers(0, 8)),  # of which so many are acknowledged,
    st.sets(st.integers(0, 8)),  # and so many entries deleted
)
STATE = st.fixed_dictionaries(
    {},
    optional={
        "string": BYTES,
        "hash": st.dictionaries(BYTES, BYTES, min_size=1, max_size=8),
        "list": st.lists(BYTES, min_size=1, max_size=8),
        "set": st.sets(BYTES, min_size=1, max_size=8),
        "zset": st.dictionaries(BYTES, SCORES, min_size=1, max_size=8),
        "stream": STREAM,
    },
)


def fill(client: redis.Redis, state: dict[str, Any]) -> None:
    if "string" in state:
        client.set("string", state["string"])
    if "hash" in state:
        client.hset("hash", mapping=state["hash"])
    if "list" in state:
        client.rpush("list", *state["list"])
    if "set" in state:
        client.sadd("set", *state["set"])
    if "zset" in state:
        client.zadd("zset", state["zset"])
    if "stream" in state:
        entries, read, acknowledged, deleted = state["stream"]
        client.xgroup_create("stream", "workers", "0", mkstream=True)
        ids = [client.xadd("stream", entry) for entry in entries]
        for index in range(min(read, len(ids))):
            client.xreadgroup("workers", f"consumer-{index % 2}", {"stream": ">"}, count=1)
        for index in acknowledged:
            client.xack("stream", "workers", *ids[index : index + 1] or [b"0-1"])
        for index in deleted:
            client.xdel("stream", *ids[index : index + 1] or [b"0-1"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATE)
def test_reading_and_writing_back_is_the_identity(
    client: redis.Redis, state: dict[str, Any]
) -> None:
    client.flushall()
    fill(client, state)
    before = told(client)
    round_trip(client)
    assert told(client) == before


def test_large_values_go_in_pieces(client: redis.Redis) -> None:
    client.set("string", b"\x00\xff" * 300_000)
    client.hset("hash", mapping={f"f{i}": b"x" * (3 << 20 if i < 4 else 9) for i in range(700)})
    client.rpush("list", *(b"%d" % i * 200 for i in range(1700)))
    client.sadd("set", *(b"%d" % i * 200 for i in range(1700)))
    client.zadd("zset", {b"%d" % i * 200: i / 7 for i in range(1700)})
    for i in range(250):
        client.xadd("stream", {"id": str(i), "blob": b"\xfe" * 2000})
    before = told(client)
    largest = max(
        values.size(record)
        for record in values.read_keys(client, [key.decode() for key in client.keys("*")])
    )
    assert largest < 24 << 20  # three payloads of 3 MiB at most, spelled in base64
    assert round_trip(client) >= 1 + 2 + 4 + 4 + 4 + (3 + 1)
    assert told(client) == before


def test_what_was_left_to_live_is_kept(client: redis.Redis) -> None:
    client.set("short", "1", px=90_000)
    client.hset("long", "a", "b")
    client.pexpire("long", 7 * 86_400_000)
    client.set("forever", "1")
    client.xadd("stream", {"a": "b"})
    client.expire("stream", 3600)
    round_trip(client)
    assert 80_000 < client.pttl("short") <= 90_000
    assert 7 * 86_390_000 < client.pttl("long") <= 7 * 86_400_000
    assert client.pttl("forever") == -1
    assert 3_590_000 < client.pttl("stream") <= 3_600_000


def test_a_stream_goes_on_where_it_was(client: redis.Redis) -> None:
    client.xadd("stream", {"id": "a"}, id="99999999999999-5")
    client.xgroup_create("stream", "workers", "0")
    client.xreadgroup("workers", "one", {"stream": ">"})
    client.xclaim("stream", "workers", "two", 0, ["99999999999999-5"], idle=40_000, retrycount=3)
    round_trip(client)
    (row,) = client.xpending_range("stream", "workers", "-", "+", 9)
    assert (row["consumer"], row["times_delivered"]) == (b"two", 3)
    assert 40_000 <= row["time_since_delivered"] < 60_000
    client.xdel("stream", "99999999999999-5")
    round_trip(client)
    assert client.xlen("stream") == 0
    assert client.xadd("stream", {"id": "b"}) == b"99999999999999-6"
    assert client.xreadgroup("workers", "two", {"stream": ">"})[0][1][0][1] == {b"id": b"b"}


def test_a_foreign_record_is_refused(client: redis.Redis) -> None:
    with pytest.raises(DataLoss, match="of type 'module'"):
        values.write(client.pipeline(), {"key": "k", "type": "module"})
