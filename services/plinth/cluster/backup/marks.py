"""Which backups are being made at a place: so that pruning leaves what they count on.

    running/<id>.json    created before a backup looks which contents are there; gone at its end

Whoever prunes looks here after taking contents away, and puts them back when somebody may have
seen them before (`pruning.py`).
"""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager

from plinth.cluster.backup.archive import SCHEMA, Archive, is_id
from plinth.shared.manifest import canonical_json

# A backup that was killed leaves its mark; none runs as long as this.
STALE_S = 7 * 24 * 3600.0


@contextmanager
def running(archive: Archive, id: str) -> Iterator[None]:
    """While backup `id` is made."""
    path = f"running/{id}.json"
    archive.storage.create(path, canonical_json({"plinth_schema": SCHEMA, "id": id}))
    try:
        yield
    finally:
        archive.storage.remove(path)


def others(archive: Archive, own: str) -> list[str]:
    """Ids of other backups that may be running."""
    names = (name.removesuffix(".json") for name in archive.storage.names("running"))
    return [id for id in names if is_id(id) and id != own and _age_s(id) < STALE_S]


def _age_s(id: str) -> float:
    return time.time() - timegm(time.strptime(id[:15], "%Y%m%dT%H%M%S"))
