"""Plinth's state in Redis as one file of records, and back.

The file is gzipped JSON lines: a header, the records of `values.py`, and a last line that says
how many they were. Only families that a backup keeps (`redis_keys.FAMILIES`) are in it.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from plinth.cluster.backup import values
from plinth.cluster.backup.freeze import Freeze, PauseLapsed, alone, check_primary, freeze
from plinth.cluster.backup.values import Client, Record
from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import DataLoss, FailedPrecondition
from plinth.shared.queue_scripts import ADOPT, PRELUDE
from plinth.shared.schema import too_new
from plinth.shared.storage import storage_errors

FORMAT = 1
MAX_LINE_BYTES = 64 << 20
# What reading a damaged file of gzipped JSON lines may raise.
UNREADABLE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError)
# Fences of a restored state begin so far above those of the backup that no number that was given
# out after it, to a worker that may still live, is given out again.
FENCE_GAP = 1 << 32
_ATTEMPTS = 3
_SEND_BYTES = 4 << 20
_DELETE = 500

Told = Callable[[int], None]


@dataclass
class Taken:
    """What was read: keys by family, and how long writers waited for it."""

    server: str
    taken_unix_ms: int
    families: Counter[str] = field(default_factory=Counter)
    records: int = 0
    paused_s: float = 0.0


def take(client: Client, spool: IO[bytes], *, limit_s: float, told: Told) -> Taken:
    """Writes the state at one instant to `spool`, which is uncompressed and on this machine, so
    that writers wait for nothing else. `told` hears the number of keys.

    FailedPrecondition: a newer schema, a half restored state, a read-only Redis.
    """
    with redis_errors():
        check_primary(client)
        with alone(client, limit_s):
            for attempt in range(_ATTEMPTS):
                spool.seek(0)
                spool.truncate()
                try:
                    return _take(client, spool, freeze(client, limit_s), told)
                except PauseLapsed:
                    if attempt == _ATTEMPTS - 1:
                        raise
    raise AssertionError("unreachable")


def _take(client: Client, spool: IO[bytes], frozen: Freeze, told: Told) -> Taken:
    server: Any = client.info("server")
    taken = Taken(str(server["redis_version"]), 0)
    with frozen, storage_errors("of temporary files (TMPDIR)"):
        taken.taken_unix_ms = time.time_ns() // 1_000_000
        _check_marks(client)
        for names in _kept_keys(client, taken):
            for record in values.read_keys(client, names):
                spool.write(json.dumps(record).encode() + b"\n")
                taken.records += 1
                frozen.beat()
            told(sum(taken.families.values()))
            frozen.beat()
    taken.paused_s = frozen.seconds
    return taken


def _check_marks(client: Client) -> None:
    if (restoring := client.get(redis_keys.RESTORING_MARK)) is not None:
        raise FailedPrecondition(
            f"backup {restoring.decode()} is half restored here: finish that first, by the same "
            "`plinth restore` again",
            reason="RESTORE_UNFINISHED",
        )
    mark: Any = client.get(redis_keys.SCHEMA_MARK)
    if mark is not None and int(mark) > redis_keys.SCHEMA:
        raise too_new(int(mark))


def _kept_keys(client: Client, taken: Taken) -> Iterator[list[str]]:
    """Names of what a backup keeps, some hundred at a time, each once."""
    seen: set[str] = set()
    some: list[str] = []
    for name, family in owned(client):
        if not redis_keys.FAMILIES[family] or name in seen:
            continue
        seen.add(name)
        taken.families[family] += 1
        some.append(name)
        if len(some) == values.KEYS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def owned(client: Client) -> Iterator[tuple[str, str]]:
    """(key, family) of every key of this schema; maybe twice. FailedPrecondition when there are
    keys of another schema, or of a family that this code does not know."""
    for raw in client.scan_iter(match="plinth:*", count=1000):
        name = raw.decode("utf-8", "replace")
        parsed = redis_keys.parse_key(name)
        if parsed is None:
            continue
        schema, family = parsed
        if schema > redis_keys.SCHEMA:
            raise too_new(schema)
        if family not in redis_keys.FAMILIES or schema < redis_keys.SCHEMA:
            raise FailedPrecondition(
                f"Redis holds {name!r}, which this Plinth does not know: it was written by another "
                "version; use that one",
                reason="FAMILY_UNKNOWN",
            )
        yield name, family


# -- the file ------------------------------------------------------------------------------------


def pack(spool: IO[bytes], into: IO[bytes], taken: Taken) -> None:
    """Compresses what was taken into the file that the archive keeps."""
    header = {
        "plinth_schema": FORMAT,
        "key_schema": redis_keys.SCHEMA,
        "redis_version": taken.server,
        "taken_unix_ms": taken.taken_unix_ms,
    }
    spool.seek(0)
    with (
        storage_errors("of temporary files (TMPDIR)"),
        gzip.GzipFile(fileobj=into, mode="wb", compresslevel=3, mtime=0) as packed,
    ):
        packed.write(json.dumps(header).encode() + b"\n")
        while chunk := spool.read(1 << 20):
            packed.write(chunk)
        packed.write(json.dumps({"records": taken.records}).encode() + b"\n")


def unpack(file: IO[bytes]) -> Iterator[Record]:
    """The records of a packed file. DataLoss when it is damaged or cut short; FailedPrecondition
    when it holds what this Plinth does not know."""
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as lines:
            header = json.loads(lines.readline(MAX_LINE_BYTES))
            if header["plinth_schema"] > FORMAT or header["key_schema"] > redis_keys.SCHEMA:
                raise backup_too_new(f"key schema {header['key_schema']}")
            count = 0
            while line := lines.readline(MAX_LINE_BYTES):
                record = json.loads(line)
                if "key" not in record:
                    if record != {"records": count}:
                        raise DataLoss(
                            f"the Redis state holds {count} records, not {record.get('records')}",
                            reason="BACKUP_DAMAGED",
                        )
                    return
                count += 1
                yield _checked(record)
    except UNREADABLE as error:
        raise DataLoss(f"the Redis state is damaged: {error}", reason="BACKUP_DAMAGED") from error
    raise DataLoss("the Redis state is cut short", reason="BACKUP_DAMAGED")


def _checked(record: Record) -> Record:
    parsed = redis_keys.parse_key(record["key"])
    if parsed is None or parsed[0] != redis_keys.SCHEMA or not redis_keys.FAMILIES.get(parsed[1]):
        raise backup_too_new(f"the key {record['key'][:100]!r}")
    return record


def backup_too_new(what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the backup holds {what}, which this Plinth does not know: a newer one made it; restore "
        "it with that version (its manifest.json says which), or choose an older backup (--backup)",
        reason="BACKUP_TOO_NEW",
    )


# -- into Redis ----------------------------------------------------------------------------------


def is_empty(client: Client) -> bool:
    """Whether it holds nothing that a backup would keep."""
    return not any(redis_keys.FAMILIES[family] for _, family in owned(client))


def clear(client: Client) -> None:
    """Deletes every key of this schema."""
    some: list[str] = []
    for name, _ in owned(client):
        some.append(name)
        if len(some) == _DELETE:
            client.unlink(*some)
            some = []
    if some:
        client.unlink(*some)


def put(client: Client, records: Iterable[Record], told: Told) -> int:
    """Writes the records; the number of them. `told` hears it on the way."""
    pipe = client.pipeline(transaction=False)
    count = sent = size = 0
    for record in records:
        values.write(pipe, record)
        count += 1
        size += values.size(record)
        if size >= _SEND_BYTES or count - sent >= 2000:
            pipe.execute()
            told(count)
            sent, size = count, 0
    pipe.execute()
    told(count)
    return count


def adopt(client: Client) -> None:
    """Makes the state one that nobody works on: leases are given back without costing an attempt,
    and every fence moves beyond what a worker of before can hold."""
    give_back = client.register_script(PRELUDE + ADOPT)
    for raw in sorted(client.smembers(redis_keys.queues())):
        names = redis_keys.QueueKeys(raw.decode())
        base = [names.stream, names.items, names.payloads, names.leases, names.delayed]
        base += [names.dead, names.cancelled, names.fence]
        gap = FENCE_GAP
        while give_back(keys=base, args=[gap]):
            gap = 0
    for raw in client.scan_iter(match=f"{redis_keys.PREFIX}:fence:*", count=1000):
        client.incrby(raw.decode(), FENCE_GAP)
    for raw in client.smembers(redis_keys.preference_collections()):
        counters = redis_keys.PreferenceKeys(raw.decode()).counters
        client.hincrby(counters, "fence", FENCE_GAP)
