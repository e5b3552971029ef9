"""`plinth backup --keep N`: older backups go, once the new one was read back and is whole.

Backups share contents, and somebody else may be making a backup here meanwhile. So contents go
in an order in which a backup that is made meanwhile never names what is gone:

1. What the backups that stay need, by their own lists. One that can't be read stops all of it.
2. Backups that are too many: the manifest first, so that what is half deleted is no backup.
3. The index lines of contents that none of the others names. From here on a backup that begins
   copies such a content anew, as another attempt.
4. A look at who else is there. Whoever began before 3 is still marked, or has finished and is one
   more backup than at 1: then the lines are put back, and the contents stay for the next time.
5. The files that were there at 3 and that no line of the index names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plinth.cluster.backup import store_copy
from plinth.cluster.backup.archive import (
    MANIFEST,
    STORE_FILE,
    Archive,
    Backup,
    Tell,
    is_content,
    is_id,
)
from plinth.cluster.backup.checkpoints import Checkpoint
from plinth.cluster.backup.marks import others
from plinth.cluster.backup.restoring import check
from plinth.shared.errors import DataLoss


@dataclass(frozen=True)
class Pruned:
    """What `prune` did."""

    kept: int
    backups: list[str]  # ids of those that were deleted
    contents: int
    bytes: int
    # Somebody else makes a backup here: contents stay until the next time.
    waits_for: list[str]


def prune(archive: Archive, new: str, keep: int, tell: Tell) -> Pruned:
    """Keeps the `keep` newest backups, `new` among them, which is marked as running.

    DataLoss: `new`, or the list of one that stays, is not what was written; nothing is deleted.
    What lies there under a name that `plinth backup` doesn't give (a backup that somebody
    renamed, to keep it) is neither counted nor deleted, and what it needs stays.
    """
    assert keep >= 1
    try:
        check(archive.url, tell, backup_id=new)
    except DataLoss as error:
        raise DataLoss(
            f"backup {new} is made, but not whole when it is read back: {error.message}. Nothing "
            "older was deleted",
            reason=error.reason,
        ) from error
    tell("pruning", 0, 0)
    finished = archive.finished()
    ours = [one.id for one in finished if is_id(one.id) and one.manifest.get("id") == one.id]
    gone = [id for id in ours[:-keep] if id != new]
    stay = [one for one in finished if one.id not in gone]
    needed = _needed(archive, stay)
    for id in gone:
        archive.storage.remove(f"backups/{id}/{MANIFEST}")
        archive.storage.remove_tree(f"backups/{id}")
    contents = size = 0
    waits_for = others(archive, new)
    if not waits_for:
        contents, size, waits_for = _drop(archive, needed, new, {one.id for one in stay})
    return Pruned(len(ours) - len(gone), gone, contents, size, waits_for)


def _needed(archive: Archive, backups: Iterable[Backup]) -> set[str]:
    """Names of all contents that these backups name."""
    needed = set()
    for backup in backups:
        with archive.part(backup, STORE_FILE) as file:
            needed |= {store_copy.content_id(path) for path in store_copy.unpack(file).contents}
        found = (Checkpoint.from_json(one) for one in backup.manifest["checkpoints"])
        needed |= {checkpoint.content for checkpoint in found}
    return needed


def _drop(
    archive: Archive, needed: set[str], new: str, stay: set[str]
) -> tuple[int, int, list[str]]:
    """Deletes what is not needed: (contents, bytes), or whom it must wait for."""
    lines = {}
    for name in sorted(archive.contents() - needed):
        path = f"index/{name}.json"
        lines[path] = (archive.storage.read(path), archive.content(name).bytes)
    for path in lines:
        archive.storage.remove(path)
    attempts = _attempts_without_a_line(archive)
    waits_for = others(archive, new)
    waits_for += [one.id for one in archive.finished() if one.id not in stay]
    if waits_for:
        for path, (line, _) in lines.items():
            archive.storage.create(path, line)  # (False: its new maker was faster)
        return 0, 0, waits_for
    for attempt in attempts:
        archive.storage.remove_tree(attempt)
    return len(lines), sum(size for _, size in lines.values()), []


def _attempts_without_a_line(archive: Archive) -> list[str]:
    """Folders of files that make no content: those of step 3, and what backups that broke off
    left."""
    found = []
    whole = archive.contents()
    for name in filter(is_content, archive.storage.names("contents")):
        line = archive.content(name).path if name in whole else ""
        attempts = (f"contents/{name}/{one}" for one in archive.storage.names(f"contents/{name}"))
        found += [attempt for attempt in attempts if attempt != line]
    return found
