"""Aliases: names for one version of an artifact. Each move is a numbered record, created
exclusively; the newest counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from plinth.shared.bounded import Bounded
from plinth.shared.errors import Aborted, NotFound
from plinth.shared.fencing import Fence, admitted, numbers
from plinth.shared.manifest import check_name
from plinth.shared.record_log import RecordLog
from plinth.shared.storage import Storage

ANY: Final = -1
_KEPT = 4000  # aliases whose moves are kept


class Move(Enum):
    """Where to, if not to a version."""

    NONE = "it is to name nothing"
    CLAIM = "it stays, and the leader is noted"


@dataclass(frozen=True)
class Alias:
    """What `name:alias` names."""

    name: str
    alias: str
    version: int
    moved_unix_ms: int

    @property
    def ref(self) -> str:
        return f"{self.name}:{self.alias}"


class Aliases:
    """The aliases of all artifacts on one storage. Blocking; safe to share between threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._logs: Bounded[str, RecordLog] = Bounded(_KEPT)

    def of(self, name: str, after: str = "") -> Iterator[Alias]:
        """Those of one artifact, by name, behind the name `after`."""
        for alias in self._storage.names(f"artifacts/{check_name(name, 'name')}/aliases"):
            if alias > after and (found := self.find(name, alias)) is not None:
                yield found

    def find(self, name: str, alias: str) -> Alias | None:
        latest = self._moves(name, alias).latest()
        if latest is None or latest[1]["version"] is None:
            return None
        move = latest[1]
        return Alias(name, alias, int(move["version"]), int(move["created_unix_ms"]))

    def get(self, name: str, alias: str) -> Alias:
        """NotFound if there is none of that name."""
        if (found := self.find(name, alias)) is None:
            raise NotFound(f"{name} has no alias {alias!r}", reason="ALIAS_NOT_FOUND", field="name")
        return found

    def point(
        self,
        name: str,
        alias: str,
        version: int,
        expected: int | None,
        fence: Fence | None,
        there: Callable[[int], bool],
    ) -> None:
        """Moves it to a version, and back if that was deleted meanwhile: then NotFound.

        there: whether there is such a version. Who deletes one marks it first and looks for aliases
        then; so one of both sees the other. Raises also what `move_alias` does."""
        before = self.find(name, alias)
        self.move(name, alias, version, expected, fence)
        at: int | Move = version
        for back in (before.version if before else Move.NONE, Move.NONE):
            if isinstance(at, Move) or there(at):
                break
            with suppress(Aborted):  # somebody has moved it on
                self.move(name, alias, back, at, fence)
            at = back
        if at != version:
            raise NotFound(
                f"{name}@{version} was deleted meanwhile",
                reason="VERSION_NOT_FOUND",
                field="reference",
            )

    def move(
        self, name: str, alias: str, to: int | Move, expected: int | None, fence: Fence | None
    ) -> None:
        """See `move_alias`."""
        move_alias(self._moves(name, alias), f"{name}:{alias}", to, expected, fence)

    def _moves(self, name: str, alias: str) -> RecordLog:
        folder = f"artifacts/{check_name(name, 'name')}/aliases/{check_name(alias, 'alias')}"
        if (log := self._logs.get(folder)) is None:
            log = RecordLog(self._storage, folder)
            self._logs.put(folder, log)
        return log


def move_alias(
    moves: RecordLog, alias: str, to: int | Move, expected: int | None, fence: Fence | None
) -> None:
    """Points the alias to a version, to none, or to the one that it has (a claim).

    alias: "name:alias", for people. expected: the version that it must have now, None for no such
    alias yet, ANY where the last caller wins. Aborted: it has another one. Raises also what
    `fencing.admitted` does.
    """
    if to is Move.CLAIM and fence is not None:
        fence = fence.of_claim()
    while True:
        number, last = moves.latest() or (0, None)
        now = last["version"] if last else None
        if expected not in (ANY, now):
            raise Aborted(
                f"{alias} is at version {now}, not {expected}: somebody moved it",
                reason="ALIAS_MOVED",
                metadata={"version": str(now)},
            )
        wanted = now if to is Move.CLAIM else None if to is Move.NONE else to
        what = f"{alias} (now version {now})"
        carried = admitted(fence, last, what, same=now == wanted)
        if now == wanted and carried == numbers(last):
            return
        created = time.time_ns() // 1_000_000
        move = {"version": wanted, "created_unix_ms": created, "fence": carried}
        if moves.append(number + 1, move):
            return
