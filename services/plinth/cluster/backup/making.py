"""`plinth backup`: the platform may go on meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import IO, Any

from plinth.cluster.backup import checkpoints, redis_state, store_copy, store_look
from plinth.cluster.backup.archive import (
    REDIS_FILE,
    STORE_FILE,
    Archive,
    Backup,
    Tell,
    new_id,
    new_spool,
    path_of,
)
from plinth.cluster.backup.freeze import LIMIT_S
from plinth.cluster.backup.marks import running
from plinth.cluster.backup.place import source_redis
from plinth.cluster.backup.pruning import Pruned, prune
from plinth.cluster.backup.redis_state import Taken
from plinth.shared import manifest, redis_keys
from plinth.shared.errors import Aborted, InvalidArgument
from plinth.shared.settings import Settings
from plinth.shared.storage_url import open_storage
from plinth.shared.version import CODE_VERSION

SECRETS = (
    "API keys are here as SHA-256 hashes, by which they can be checked and not used. The data "
    "directory's secrets (the first API key, the cluster token, passwords) are not here."
)


@dataclass(frozen=True)
class Made:
    """What `back_up` did."""

    backup: Backup
    url: str
    keys: int
    paused_s: float
    artifacts: int  # versions in the backup
    copied: int  # contents and checkpoints that the archive did not have
    copied_bytes: int
    checkpoints: int
    pruned: Pruned | None = None


def back_up(
    settings: Settings,
    destination: str,
    tell: Tell,
    *,
    limit_s: float = LIMIT_S,
    keep: int | None = None,
) -> Made:
    """Makes a backup at `destination`, a folder or a URL. limit_s: longest that writers of Redis
    may wait. Raises what stands in the way; then there is no new backup.

    `keep`: reads it back, and then deletes older ones, so that so many are there (`pruning.py`).
    """
    _check_destination(settings, destination)
    archive = Archive(destination)
    id = new_id()
    with running(archive, id):
        made = _make(settings, archive, id, tell, limit_s)
        if keep is not None:
            made = replace(made, pruned=prune(archive, id, keep, tell))
    return made


def _make(settings: Settings, archive: Archive, id: str, tell: Tell, limit_s: float) -> Made:
    storage = open_storage(settings.store())
    with new_spool() as redis_file, new_spool() as store_file:
        taken = _take_redis(settings, redis_file, tell, limit_s)
        # Before the records: a job whose folder is gone by now has published what they will name.
        tell("checkpoints", 0, 0)
        found, checkpoint_bytes = checkpoints.copy_out(settings.data_dir, archive)
        tell("records", 0, 0)
        state = store_look.look(storage)
        store_copy.pack(state, store_file)
        copied, size = store_copy.copy_out(
            storage, state, archive, lambda done, total: tell("artifacts", done, total)
        )
        _check_contents(archive, state, found)
        facts = _facts(taken, state, found)
        parts = {REDIS_FILE: redis_file, STORE_FILE: store_file}
        backup = archive.finish(id, parts, facts)
    return Made(
        backup,
        archive.url,
        sum(taken.families.values()),
        taken.paused_s,
        len(state.versions),
        copied,
        size + checkpoint_bytes,
        len(found),
    )


def _check_contents(
    archive: Archive, state: store_look.StoreState, found: list[checkpoints.Checkpoint]
) -> None:
    """What was there at the beginning is still there: Aborted where it was deleted by hand, or
    pruned from under a backup that took longer than any should."""
    wanted = {store_look.content_id(path) for path in state.contents}
    if gone := (wanted | {one.content for one in found}) - archive.contents():
        raise Aborted(
            f"{len(gone)} contents were deleted from {archive.url} while this backup was made, "
            f"such as {min(gone)}: back up again",
            reason="BACKUP_OVERTAKEN",
        )


def _take_redis(settings: Settings, packed: IO[bytes], tell: Tell, limit_s: float) -> Taken:
    with source_redis(settings) as client, new_spool() as spool:
        tell("redis", 0, 0)
        taken = redis_state.take(
            client, spool, limit_s=limit_s, told=lambda done: tell("redis", done, 0)
        )
        redis_state.pack(spool, packed, taken)
    return taken


def _facts(
    taken: Taken, state: store_look.StoreState, found: list[checkpoints.Checkpoint]
) -> dict[str, Any]:
    return {
        "code_version": CODE_VERSION,
        "taken_unix_ms": taken.taken_unix_ms,
        "key_schema": redis_keys.SCHEMA,
        "store_schema": manifest.SCHEMA,
        "redis_version": taken.server,
        "redis_keys": dict(taken.families),
        "redis_records": taken.records,
        "store_records": len(state.records),
        "contents": len(state.contents),
        "content_bytes": sum(store_look.bytes_of(one) for one in state.contents.values()),
        "checkpoints": [one.to_json() for one in found],
        "secrets": SECRETS,
    }


def _check_destination(settings: Settings, destination: str) -> None:
    """A backup in the folder that it is a backup of would go with it."""
    place = path_of(destination)
    if place is not None and place.resolve().is_relative_to(settings.data_dir.resolve()):
        raise InvalidArgument(
            f"{place} lies in the data directory {settings.data_dir}, and would be lost with it: "
            "choose another place, on another disk",
            field="destination",
        )
    store = path_of(settings.store())
    same = bool(place and store and place.resolve() == store.resolve())
    if same or f"{destination.rstrip('/')}/".startswith(f"{settings.store().rstrip('/')}/"):
        raise InvalidArgument(
            f"{destination} is the store itself, or in it: choose another place",
            field="destination",
        )
