"""How an alias moves: each move is a numbered record, created exclusively; the newest counts."""

from __future__ import annotations

import time
from typing import Final

from plinth.shared.errors import Aborted
from plinth.shared.fencing import Fence, admitted, numbers
from plinth.shared.record_log import RecordLog

ANY: Final = -1


def move_alias(
    moves: RecordLog, alias: str, version: int | None, expected: int | None, fence: Fence | None
) -> None:
    """Points the alias to `version`; None: to the one that it has, so that only the leader is
    noted (a claim).

    alias: "name:alias", for people. expected: the version that it must have now, None for no such
    alias yet, ANY where the last caller wins. Aborted: it has another one. Raises also what
    `fencing.admitted` does.
    """
    if version is None and fence is not None:
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
        wanted = now if version is None else version
        what = f"{alias} (now version {now})"
        carried = admitted(fence, last, what, same=now == wanted)
        if now == wanted and carried == numbers(last):
            return
        created = time.time_ns() // 1_000_000
        move = {"version": wanted, "created_unix_ms": created, "fence": carried}
        if moves.append(number + 1, move):
            return
