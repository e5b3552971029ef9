"""Who makes a backup at a place, or restores one: so that pruning leaves what they count on.

    running/<id>.json    created before a backup or a restore looks what is there; gone at its end

Whoever prunes looks here after taking contents away, and puts them back when somebody may have
seen them before (`pruning.py`).
"""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from plinth.cluster.backup.archive import SCHEMA, Archive, is_id
from plinth.shared.errors import PlinthError
from plinth.shared.manifest import canonical_json

# Who was killed leaves its mark; no backup and no restore runs as long as this.
STALE_S = 7 * 24 * 3600.0


@contextmanager
def running(archive: Archive, id: str) -> Iterator[None]:
    """While backup `id` is made, or a restore that takes an id for this runs."""
    path = f"running/{id}.json"
    archive.storage.create(path, canonical_json({"plinth_schema": SCHEMA, "id": id}))
    try:
        yield
    finally:
        with suppress(PlinthError):  # (a mark that stays keeps contents longer, and no more)
            archive.storage.remove(path)


def others(archive: Archive, own: str) -> list[str]:
    """Ids of other backups and restores that may be running."""
    names = (name.removesuffix(".json") for name in archive.storage.names("running"))
    return [id for id in names if is_id(id) and id != own and _age_s(id) < STALE_S]


def _age_s(id: str) -> float:
    return time.time() - timegm(time.strptime(id[:15], "%Y%m%dT%H%M%S"))
