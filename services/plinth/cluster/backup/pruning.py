"""`plinth backup --keep N`: older backups go, once the new one was read back and is whole.

Backups share contents, and somebody else may be making a backup here meanwhile. So contents go
in an order in which a backup that is made meanwhile never names what is gone:

1. What the backups that stay need, by their own lists. One that can't be read stops all of it.
2. Backups that are too many: the manifest first, so that what is half deleted is no backup. Then
   what has none, and isn't marked as running.
3. The index lines of contents that none of the others names, moved to `dropped/`. From here on a
   backup that begins copies such a content anew, as another attempt.
4. A look at who else is there. Whoever began before 3 is still marked, or has finished and is one
   more backup than at 1: then the lines are put back, and the contents stay for the next time.
5. The files that were there at 3 and that no line of the index names, and the lines of 3.

Whoever is killed between 3 and 4 leaves lines in `dropped/`, and a backup that counted on one may
have finished since. The next to prune puts such a line back, where its files are whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from plinth.cluster.backup import store_copy, store_look
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
from plinth.shared.errors import DataLoss, PlinthError

DROPPED = "dropped"


@dataclass(frozen=True)
class Pruned:
    """What `prune` did."""

    kept: int
    backups: list[str]  # ids of those that were deleted
    broken_off: list[str]  # and of those that were never finished, or were half deleted
    contents: int
    bytes: int
    # Somebody else makes or restores a backup here: contents stay until the next time.
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
    broken_off = _broken_off(archive, new)
    for id in broken_off:
        archive.storage.remove_tree(f"backups/{id}")
    contents = size = 0
    waits_for = others(archive, new)
    if not waits_for:
        contents, size, waits_for = _drop(archive, needed, new, {one.id for one in stay})
    return Pruned(len(ours) - len(gone), gone, broken_off, contents, size, waits_for)


def _broken_off(archive: Archive, new: str) -> list[str]:
    """Older backups without a manifest that nobody makes any more. Their Redis state is in them,
    which people take for gone."""
    storage = archive.storage
    begun = [id for id in storage.names("backups") if is_id(id) and id < new]
    running = set(others(archive, new))
    # Looked for last: what was begun, and has no mark any more, has its manifest by now.
    unmarked = (id for id in begun if id not in running)
    return [id for id in unmarked if MANIFEST not in storage.names(f"backups/{id}")]


def _needed(archive: Archive, backups: Iterable[Backup]) -> set[str]:
    """Names of all contents that these backups name."""
    needed = set()
    for backup in backups:
        with archive.part(backup, STORE_FILE) as file:
            needed |= {store_look.content_id(path) for path in store_copy.unpack(file).contents}
        found = (Checkpoint.from_json(one) for one in backup.manifest["checkpoints"])
        needed |= {checkpoint.content for checkpoint in found}
    return needed


def _drop(
    archive: Archive, needed: set[str], new: str, stay: set[str]
) -> tuple[int, int, list[str]]:
    """Deletes what is not needed: (contents, bytes), or whom it must wait for."""
    _recover(archive, needed)
    sizes = {name: archive.content(name).bytes for name in sorted(archive.contents() - needed)}
    try:
        for name in sizes:
            _move(archive, _line(name), _dropped(name))
        attempts = _attempts_without_a_line(archive, needed)
        waits_for = others(archive, new)
        waits_for += [one.id for one in archive.finished() if one.id not in stay]
    except BaseException:  # Ctrl-C, too: a backup that began before may count on these lines
        with suppress(PlinthError):  # (then the next to prune finds them)
            _put_back(archive, sizes)
        raise
    if waits_for:
        _put_back(archive, sizes)
        return 0, 0, waits_for
    for attempt in attempts:
        archive.storage.remove_tree(attempt)
    for name in sizes:
        archive.storage.remove(_dropped(name))
    return len(sizes), sum(sizes.values()), []


def _line(name: str) -> str:
    return f"index/{name}.json"


def _dropped(name: str) -> str:
    return f"{DROPPED}/{name}.json"


def _move(archive: Archive, source: str, target: str) -> None:
    """One line; at no time is it in neither place. What is at `target` already stays."""
    with suppress(FileNotFoundError):
        archive.storage.create(target, archive.storage.read(source))
        archive.storage.remove(source)


def _put_back(archive: Archive, names: Iterable[str]) -> None:
    for name in names:
        _move(archive, _dropped(name), _line(name))  # (or its new maker was faster)


def _recover(archive: Archive, needed: set[str]) -> None:
    """Lines that somebody who was killed has dropped: those that are needed are put back. Of the
    others the files may be half deleted, so what is left of them goes at step 5."""
    lost = needed - archive.contents()
    names = (name.removesuffix(".json") for name in archive.storage.names(DROPPED))
    for name in filter(is_content, names):
        if name not in lost:
            archive.storage.remove(_dropped(name))
        elif _is_whole(archive, name):
            _put_back(archive, [name])


def _is_whole(archive: Archive, name: str) -> bool:
    """Whether the files that a dropped line names are what was written."""
    try:
        content = archive.content(name, DROPPED)
        for file in content.files:
            for _ in archive.read(content, file):
                pass
    except DataLoss:
        return False
    return True


def _attempts_without_a_line(archive: Archive, needed: set[str]) -> list[str]:
    """Folders of files that make no content: those of step 3, and what backups that broke off
    left. Where a line is needed and gone, they are all that is left of a content, and stay."""
    found = []
    whole = archive.contents()
    lost = needed - whole
    for name in filter(is_content, archive.storage.names("contents")):
        if name in lost:
            continue
        line = archive.content(name).path if name in whole else ""
        attempts = (f"contents/{name}/{one}" for one in archive.storage.names(f"contents/{name}"))
        found += [attempt for attempt in attempts if attempt != line]
    return found
