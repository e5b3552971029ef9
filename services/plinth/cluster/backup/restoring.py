"""`plinth restore`: onto a platform that does not run.

What can be refused is refused before anything is written. The store comes before Redis, so that
the state that appears last names nothing that isn't there; a mark in Redis keeps stages from
starting until all of it is in place, and lets a restore that broke off be given again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal

from plinth.cluster.backup import checkpoints, redis_state, store_copy, store_look
from plinth.cluster.backup.archive import (
    REDIS_FILE,
    STORE_FILE,
    Archive,
    Backup,
    Tell,
    new_id,
    path_of,
)
from plinth.cluster.backup.checkpoints import Checkpoint
from plinth.cluster.backup.marks import running
from plinth.cluster.backup.place import check_nobody, target_redis
from plinth.cluster.backup.store_look import StoreState
from plinth.cluster.backup.values import Client
from plinth.shared import manifest, redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import FailedPrecondition, NotFound
from plinth.shared.schema import of_another, too_new
from plinth.shared.settings import Settings
from plinth.shared.storage import Storage
from plinth.shared.storage_url import open_storage

Only = Literal["redis", "store"]


@dataclass(frozen=True)
class Restored:
    """What `restore` did. keys: records written to Redis."""

    backup: Backup
    redis_records: int
    artifacts: int
    copied: int
    copied_bytes: int
    checkpoints: int


@dataclass
class _Opened:
    """A backup whose parts are here and whole."""

    archive: Archive
    backup: Backup
    redis_file: IO[bytes]
    store: StoreState
    checkpoints: list[Checkpoint]


def restore(
    settings: Settings,
    source: str,
    tell: Tell,
    *,
    backup_id: str | None = None,
    only: Only | None = None,
    replace_redis: bool = False,
    merge_store: bool = False,
) -> Restored:
    """Puts a backup (the newest, or `backup_id`) back. `only` one half of it.

    FailedPrecondition: a stack runs; the target isn't empty, and it was not said that it may be
    (replace_redis, merge_store); Redis is another release's, which it may never be; the backup is a
    newer Plinth's. DataLoss: a digest differs.
    """
    archive = _archive(source)
    with (
        running(archive, new_id()),  # before the backup is looked for: it may be about to be pruned
        _opened(archive, backup_id) as opened,
        target_redis(settings) as client,
    ):
        storage = open_storage(settings.store())
        # 1. All that can be refused.
        with redis_errors():
            if only != "store":
                _check_redis(client, opened.backup, settings.release, replace=replace_redis)
        there = store_look.look(storage, contents=only == "redis")
        if only == "redis":
            _check_named(opened.store, there, storage)
        else:
            store_copy.check_target(opened.store, there, merge=merge_store, url=storage.url)
        # 2. Nobody starts from here on.
        if only != "store":
            with redis_errors():
                client.set(redis_keys.RESTORING_MARK, opened.backup.id)
                check_nobody(client)
        # 3. The store, then Redis.
        copied = size = records = 0
        if only != "redis":
            copied, size = store_copy.copy_back(
                storage,
                opened.store,
                opened.archive,
                lambda done, total: tell("artifacts", done, total),
            )
        if only != "store":
            tell("checkpoints", 0, 0)
            size += checkpoints.copy_back(opened.checkpoints, opened.archive, settings.data_dir)
            records = _fill_redis(client, opened, tell)
    return Restored(
        opened.backup, records, len(opened.store.versions), copied, size, len(opened.checkpoints)
    )


def check(source: str, tell: Tell, *, backup_id: str | None = None) -> Restored:
    """Reads all of a backup and compares digests, changing nothing."""
    with _opened(_archive(source), backup_id) as opened:
        records = sum(1 for _ in redis_state.unpack(opened.redis_file))
        size = store_copy.check_archive(
            opened.store, opened.archive, lambda done, total: tell("artifacts", done, total)
        )
        size += checkpoints.check(opened.checkpoints, opened.archive)
    count = len(opened.store.versions)
    return Restored(opened.backup, records, count, 0, size, len(opened.checkpoints))


def _archive(source: str) -> Archive:
    path = path_of(source)
    if path is not None and not path.is_dir():
        raise NotFound(f"{path} is no folder: name the place that was given to `plinth backup`")
    return Archive(source)


@contextmanager
def _opened(archive: Archive, backup_id: str | None) -> Iterator[_Opened]:
    """Finds the backup, copies its small parts here and checks them."""
    backup = archive.find(backup_id)
    facts = backup.manifest
    for what, known in (("key_schema", redis_keys.SCHEMA), ("store_schema", manifest.SCHEMA)):
        if int(facts[what]) > known:
            made = f"{what.replace('_', ' ')} {facts[what]} (of {facts['code_version']})"
            raise redis_state.backup_too_new(made)
    with archive.part(backup, STORE_FILE) as store_file:
        store = store_copy.unpack(store_file)
    found = [Checkpoint.from_json(one) for one in facts["checkpoints"]]
    with archive.part(backup, REDIS_FILE) as redis_file:
        for _ in redis_state.unpack(redis_file):
            pass  # every record is known before the first is written
        redis_file.seek(0)
        yield _Opened(archive, backup, redis_file, store, found)


def _check_redis(client: Client, backup: Backup, release: str | None, *, replace: bool) -> None:
    mark: Any = client.get(redis_keys.SCHEMA_MARK)
    if mark is not None and int(mark) > redis_keys.SCHEMA:
        raise too_new(int(mark))
    owner: Any = client.get(redis_keys.RELEASE_MARK)
    if owner is not None and owner.decode() != release:
        database = client.connection_pool.connection_kwargs.get("db") or 0
        raise of_another(owner.decode(), release, database)
    half: Any = client.get(redis_keys.RESTORING_MARK)
    if not replace and half is not None and half.decode() != backup.id:
        raise FailedPrecondition(
            f"this Redis holds backup {half.decode()}, half restored: give that one again "
            f"(--backup {half.decode()}), or give it up with --replace-redis",
            reason="RESTORE_UNFINISHED",
        )
    if not replace and half is None and not redis_state.is_empty(client):
        raise FailedPrecondition(
            "this Redis is not empty: it holds state of a platform. Restore into an empty one, or "
            "give up what it holds with --replace-redis",
            reason="TARGET_NOT_EMPTY",
        )


def _check_named(state: StoreState, there: StoreState, storage: Storage) -> None:
    """Redis alone is restored over a store that has what it names."""
    missing = [path for path in state.versions if there.records.get(path) != state.records[path]]
    if missing:
        raise FailedPrecondition(
            f"the store {storage.url} lacks {len(missing)} artifacts that the backup's Redis state "
            f"may name, such as {missing[0]}: restore both (leave --only out)",
            reason="STORE_INCOMPLETE",
        )


def _fill_redis(client: Client, opened: _Opened, tell: Tell) -> int:
    total = int(opened.backup.manifest["redis_records"])
    tell("redis", 0, total)
    with redis_errors():
        redis_state.clear(client)
        records = redis_state.put(
            client,
            redis_state.unpack(opened.redis_file),
            lambda done: tell("redis", done, total),
        )
        redis_state.adopt(client)
        client.set(redis_keys.SCHEMA_MARK, redis_keys.SCHEMA)
        client.delete(redis_keys.RESTORING_MARK)
    return records
