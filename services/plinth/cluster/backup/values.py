"""Redis values of every type as plain records, and back: portable between server versions.

DUMP's payloads can't go to an older server, so values are read by their types' own commands. One
record is one JSON object; a large value takes several, in order:

    {"key", "type": "string", "value"}              bytes are base64
    {"key", "type": "hash", "items": [[field, value], …]}
    {"key", "type": "list" | "set", "items": [value, …]}
    {"key", "type": "zset", "items": [[member, score], …]}
    {"key", "type": "stream", "entries": [[id, [[field, value], …]], …]}
    {"key", "type": "stream-end", "last_id", "added", "deleted_id", "groups": [{"name", "last_id",
     "read", "consumers", "pending": [[id, consumer, idle in ms, deliveries], …]}, …]}
    {"key", "type": "expire", "ttl_ms"}             what was left to live

Expiry times of a hash's single fields (Redis 7.4 and later) are not kept: Plinth sets none.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from plinth.shared.errors import DataLoss

Record: TypeAlias = dict[str, Any]
# redis.Redis; the answers in its own types are those of both its clients, decoded and not.
Client: TypeAlias = Any

KEYS_AT_ONCE = 500
_SMALL_BYTES = 256 << 10  # a value up to this is read whole, many in one round trip
_ROUND_BYTES = 8 << 20  # of one round trip
_ITEMS = 500


def read_keys(client: Client, keys: Sequence[str]) -> Iterator[Record]:
    """The records of these keys (at most KEYS_AT_ONCE); those that are gone give none."""
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.type(key)
        pipe.pttl(key)
        pipe.memory_usage(key, samples=0)  # of all its elements: payloads differ much
    answers = pipe.execute()
    small: list[tuple[str, str, int]] = []
    size = 0
    for index, key in enumerate(keys):
        kind, ttl, used = answers[3 * index : 3 * index + 3]
        name = kind.decode() if isinstance(kind, bytes) else str(kind)
        if name == "none" or ttl == -2:
            continue
        if name != "stream" and (used or 0) <= _SMALL_BYTES:
            small.append((key, name, ttl))
            size += used or 0
            if size >= _ROUND_BYTES:
                yield from _read_small(client, small)
                small, size = [], 0
            continue
        yield from _LARGE[_known(key, name, _LARGE)](client, key)
        yield from _expiry(key, ttl)
    yield from _read_small(client, small)


def _read_small(client: Client, keys: Sequence[tuple[str, str, int]]) -> Iterator[Record]:
    pipe = client.pipeline(transaction=False)
    for key, kind, _ in keys:
        match _known(key, kind, _LARGE):
            case "string":
                pipe.get(key)
            case "hash":
                pipe.hgetall(key)
            case "list":
                pipe.lrange(key, 0, -1)
            case "set":
                pipe.smembers(key)
            case "zset":
                pipe.zrange(key, 0, -1, withscores=True)
    for (key, kind, ttl), value in zip(keys, pipe.execute(), strict=True):
        if (not value and kind != "string") or value is None:
            continue  # it lapsed between the two looks
        match kind:
            case "string":
                yield {"key": key, "type": kind, "value": _text(value)}
            case "hash":
                yield {"key": key, "type": kind, "items": _pairs(value.items())}
            case "zset":
                yield {"key": key, "type": kind, "items": _scores(value)}
            case _:
                yield {"key": key, "type": kind, "items": [_text(one) for one in value]}
        yield from _expiry(key, ttl)


def _expiry(key: str, ttl_ms: int) -> Iterator[Record]:
    if ttl_ms >= 0:
        yield {"key": key, "type": "expire", "ttl_ms": ttl_ms}


# -- large values, in pieces ---------------------------------------------------------------------


def _string(client: Client, key: str) -> Iterator[Record]:
    if (value := client.get(key)) is not None:
        yield {"key": key, "type": "string", "value": _text(value)}


def _hash(client: Client, key: str) -> Iterator[Record]:
    """Payloads are up to 4 MiB each, so their sizes are asked first."""
    fields: Any = client.hkeys(key)
    for part in _parts(fields, _ITEMS):
        pipe = client.pipeline(transaction=False)
        for field in part:
            pipe.hstrlen(key, field)
        for some in _by_size(part, pipe.execute()):
            values: Any = client.hmget(key, some)
            there = [(f, v) for f, v in zip(some, values, strict=True) if v is not None]
            yield {"key": key, "type": "hash", "items": _pairs(there)}


def _list(client: Client, key: str) -> Iterator[Record]:
    start = 0
    while values := client.lrange(key, start, start + _ITEMS - 1):
        yield {"key": key, "type": "list", "items": [_text(one) for one in values]}
        start += _ITEMS


def _set(client: Client, key: str) -> Iterator[Record]:
    for part in _parts(list(client.sscan_iter(key, count=_ITEMS)), _ITEMS):
        yield {"key": key, "type": "set", "items": [_text(one) for one in part]}


def _zset(client: Client, key: str) -> Iterator[Record]:
    start = 0
    while values := client.zrange(key, start, start + _ITEMS - 1, withscores=True):
        yield {"key": key, "type": "zset", "items": _scores(values)}
        start += _ITEMS


def _stream(client: Client, key: str) -> Iterator[Record]:
    last = "-"
    while entries := client.xrange(key, min=last, count=100):
        rows = [[_id(id), _pairs((fields or {}).items())] for id, fields in entries]
        yield {"key": key, "type": "stream", "entries": rows}
        last = f"({rows[-1][0]}"
    info: Any = client.xinfo_stream(key)
    groups = [_group(client, key, group) for group in client.xinfo_groups(key)]
    yield {
        "key": key,
        "type": "stream-end",
        "last_id": _id(info["last-generated-id"]),
        "added": info["entries-added"],
        "deleted_id": _id(info["max-deleted-entry-id"]),
        "groups": groups,
    }


def _group(client: Client, key: str, group: Any) -> Record:
    name = group["name"]
    consumers: Any = client.xinfo_consumers(key, name)
    pending: list[Any] = []
    first = "-"
    while rows := client.xpending_range(key, name, min=first, max="+", count=_ITEMS):
        for row in rows:
            who = _text(row["consumer"])
            pending.append(
                [_id(row["message_id"]), who, row["time_since_delivered"], row["times_delivered"]]
            )
        first = f"({pending[-1][0]}"
    return {
        "name": _text(name),
        "last_id": _id(group["last-delivered-id"]),
        "read": group["entries-read"],
        "consumers": [_text(consumer["name"]) for consumer in consumers],
        "pending": pending,
    }


_LARGE: dict[str, Callable[[Client, str], Iterator[Record]]] = {
    "string": _string,
    "hash": _hash,
    "list": _list,
    "set": _set,
    "zset": _zset,
    "stream": _stream,
}


# -- back ----------------------------------------------------------------------------------------


def write(pipe: Any, record: Record) -> None:
    """Queues the commands that put one record back. DataLoss when it is none."""
    key = record["key"]
    match record["type"]:
        case "string":
            pipe.set(key, _bytes(record["value"]))
        case "hash":
            pipe.hset(key, mapping={_bytes(f): _bytes(v) for f, v in record["items"]})
        case "list":
            pipe.rpush(key, *(_bytes(one) for one in record["items"]))
        case "set":
            pipe.sadd(key, *(_bytes(one) for one in record["items"]))
        case "zset":
            pipe.zadd(key, {_bytes(member): float(score) for member, score in record["items"]})
        case "stream":
            for id, fields in record["entries"]:
                pipe.xadd(key, {_bytes(f): _bytes(v) for f, v in fields}, id=id)
        case "stream-end":
            _write_stream_end(pipe, key, record)
        case "expire":
            pipe.pexpire(key, max(1, record["ttl_ms"]))
        case other:
            raise DataLoss(f"a record of {key} is of type {other!r}", reason="BACKUP_DAMAGED")


def _write_stream_end(pipe: Any, key: str, record: Record) -> None:
    # An empty stream is made by making a group and taking it away again.
    pipe.xgroup_create(key, "plinth-restore", "0", mkstream=True)
    pipe.xgroup_destroy(key, "plinth-restore")
    numbers = ["ENTRIESADDED", record["added"], "MAXDELETEDID", record["deleted_id"]]
    pipe.execute_command("XSETID", key, record["last_id"], *numbers)
    for group in record["groups"]:
        name = _bytes(group["name"])
        pipe.xgroup_create(key, name, group["last_id"], entries_read=group["read"])
        for consumer in group["consumers"]:
            pipe.xgroup_createconsumer(key, name, _bytes(consumer))
        for id, consumer, idle_ms, deliveries in group["pending"]:
            pipe.xclaim(
                key,
                name,
                _bytes(consumer),
                0,
                [id],
                idle=idle_ms,
                retrycount=deliveries,
                force=True,
                justid=True,
            )


def size(record: Record) -> int:
    """Roughly how many bytes a record is worth, to bound what is sent at once."""
    many: list[Any] = record.get("items") or record.get("entries") or []
    return len(record.get("value", "")) + sum(len(str(one)) for one in many)


# -- spelling ------------------------------------------------------------------------------------


def _known(key: str, kind: str, kinds: dict[str, Any]) -> str:
    if kind not in kinds:
        raise DataLoss(f"{key} is of type {kind!r}, which Plinth never writes: delete it")
    return kind


def _text(value: Any) -> str:
    return b64encode(value if isinstance(value, bytes) else str(value).encode()).decode()


def _bytes(text: str) -> bytes:
    return b64decode(text, validate=True)


def _id(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pairs(items: Any) -> list[list[str]]:
    return [[_text(field), _text(value)] for field, value in items]


def _scores(items: Any) -> list[list[str]]:
    return [[_text(member), repr(float(score))] for member, score in items]


def _parts(items: list[Any], count: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]


def _by_size(items: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Runs of items of at most _ROUND_BYTES together, or of one."""
    run: list[Any] = []
    total = 0
    for item, bytes_ in zip(items, sizes, strict=True):
        if run and total + bytes_ > _ROUND_BYTES:
            yield run
            run, total = [], 0
        run.append(item)
        total += bytes_
    if run:
        yield run
