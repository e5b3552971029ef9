"""Fencing: a writer that was overtaken without noticing changes nothing any more.

Records that stand for a state of the world (an alias's moves, a deployment's changes) carry the
numbers of the run and of the leader that wrote last, and the number decides, not who came last
(Kleppmann 2017, chapter 8, "Fencing tokens"). Two ways of being late are told apart:

    term  the leader's number of its lease: a coordinator that lost its lease while it was suspended
          is refused as `Aborted`; its successor does the same step
    run   the run's number in the order of submission: an earlier run that gets to its step after a
          later one is refused as `FailedPrecondition`; nothing would make it right by itself

Both only ever grow in a record. Writes of people carry no fence: they leave the numbers as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plinth.shared.errors import Aborted, FailedPrecondition

SUPERSEDED = "RUN_SUPERSEDED"
STALE = "FENCE_STALE"


@dataclass(frozen=True)
class Fence:
    """Who writes. run: 0 for what a leader does for no run. lease: what the lease's key in Redis
    holds while this leader leads, "" where that is not to be compared."""

    term: int
    run: int = 0
    lease: str = ""

    def of_claim(self) -> Fence:
        """For a claim: nothing is written in the run's name, so no earlier run is in the wrong. A
        writer of the same run that is late is one of an earlier leader."""
        return replace(self, run=0)


def admitted(
    fence: Fence | None, last: Mapping[str, Any] | None, what: str, *, same: bool
) -> dict[str, int]:
    """The numbers that the next record carries, `last` being the newest one's content; those of
    `last` itself where there is nothing to write.

    Aborted (FENCE_STALE): a later leader was here. FailedPrecondition (RUN_SUPERSEDED): a later
    run was, and it wanted something else. what: the thing that would be written, for people. same:
    it would be written as it is, so as to mark it; of two runs that want the same none is wrong.
    """
    before = numbers(last)
    if fence is None:
        return before
    if fence.term < before["term"]:
        raise Aborted(
            f"{what} was written by a later leader than this one ({before['term']}, not "
            f"{fence.term}): another coordinator leads",
            reason=STALE,
        )
    if 0 < fence.run < before["run"] and not same:
        raise FailedPrecondition(
            f"{what} was written by a run that was submitted after this one, and stays as it is; "
            "submit the pipeline again if this is to stand (finished steps are reused)",
            reason=SUPERSEDED,
        )
    return {"run": max(fence.run, before["run"]), "term": fence.term}


def numbers(record: Mapping[str, Any] | None) -> dict[str, int]:
    """The fence in a record; zeros where there is none (records of earlier versions)."""
    kept = (record or {}).get("fence") or {}
    return {"run": int(kept.get("run", 0)), "term": int(kept.get("term", 0))}
