"""What a canary must keep to, each as a comparison of two shares of failures: what counts as a
failure, how much more of them is allowed, and how many requests it takes to tell.

A gate takes what came of both revisions' requests since its last block as one block of outcomes
(`algos/sequential.py`), so its evidence holds however often it is looked at. What it takes are
whole cohorts, in their order (`shared/canary_counts.py`): when a request ends says what came of it,
so no block may depend on that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from plinth.algos.sequential import Evidence, Outcomes, treated_needed
from plinth.shared.canary_counts import Tally, buckets_of_ratio

LEVEL = 0.05  # that a canary that breaks a gate is promoted; that one within all is rejected
POWER = 0.8  # of the sizes that are told
TAIL = 0.95  # the quantile of times to first token
_FEWEST = 20  # first tokens of the stable revision without which its quantile is not known


class CanaryRequire(BaseModel):
    """What the canary must keep to, against the stable revision; None: not asked.

    It takes over once each of these is shown, with at most 5 % chance of being wrong about any; it
    goes early once one is shown to be broken, with at most 5 % chance over all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 0.01: less than one point above the stable revision's share of failed requests, which are also
    # those that were hung up on before their first token. The smaller,
    # the more requests it takes (docs/promotion.md); at 0 only one that fails less often passes.
    error_share_above_at_most: float | None = Field(default=0.01, ge=0, le=1)
    # 1.5: fewer of the canary's first tokens take more than 1.5 times a bound than of the stable
    # revision's take more than the bound: the highest that 5 % of those lie above.
    ttft_p95_ratio_at_most: float | None = Field(default=2.0, gt=0, le=1000)
    # 0.02: less than two points below the stable revision's share of good verdicts (ReportOutcome).
    # At 0 only one that is liked more passes.
    good_share_below_at_most: float | None = Field(default=None, ge=0, le=1)
    # Verdicts on either revision to have before it takes over, however clear they are.
    verdicts: int = Field(default=30, ge=1, le=1_000_000)


@dataclass(frozen=True)
class Shown:
    """What a gate knows: both revisions' tallies when its last block ended, and the evidence."""

    stable: Tally = field(default_factory=Tally)
    canary: Tally = field(default_factory=Tally)
    evidence: Evidence = field(default_factory=Evidence)

    def raw(self) -> dict[str, Any]:
        """JSON-ready."""
        tallies = {"stable": vars(self.stable), "canary": vars(self.canary)}
        return {**tallies, "evidence": {**vars(self.evidence), "seen": vars(self.evidence.seen)}}

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Shown:
        """Of what `raw` and JSON made of one."""
        evidence = raw["evidence"]
        seen = Outcomes(**evidence["seen"])
        logs = (tuple(evidence["not_worse"]), tuple(evidence["worse"]))
        return cls(tally_of(raw["stable"]), tally_of(raw["canary"]), Evidence(seen, *logs))


@dataclass(frozen=True)
class Gate:
    """One comparison. bar: the value of the field `NAME` of `require`."""

    NAME: ClassVar[str]
    WHAT: ClassVar[str]  # the outcomes, in words
    FAILED: ClassVar[str]

    bar: float

    @property
    def noninferiority_margin(self) -> float:
        """How far the canary's share of failures may lie above the stable revision's, in [0, 1]."""
        return self.bar

    def look(self, shown: Shown, stable: Tally, canary: Tally, ratio: float, last: bool) -> Shown:
        """With what came since the last block, once that is enough of both: a block of one stream
        says nothing. stable, canary: all that counts by now. ratio: of the stable revision's
        requests to the canary's. last: no more comes.

        How many outcomes came decides that, never what they are."""
        block = self.block(shown, stable, canary)
        enough = 1 if last else max(1.0, ratio * block.treated / 2)
        if not block.treated or block.control < enough:
            return shown
        return Shown(
            self.kept(stable),
            self.kept(canary),
            shown.evidence.after(block, self.noninferiority_margin),
        )

    def block(self, shown: Shown, stable: Tally, canary: Tally) -> Outcomes:
        """What came since the last block."""
        now = (*self.counts(stable), *self.counts(canary))
        then = (*self.counts(shown.stable), *self.counts(shown.canary))
        return Outcomes(*(one - other for one, other in zip(now, then, strict=True)))

    def kept(self, tally: Tally) -> Tally:
        """What the next block is counted from."""
        return replace(tally, ttft={})

    def counts(self, tally: Tally) -> tuple[int, int]:
        """(outcomes, failures) of one revision."""
        raise NotImplementedError

    def line(self, stable: Tally, canary: Tally) -> str:
        """What came of both, and what is allowed."""
        raise NotImplementedError

    def needed(self, share: float, control: float, treated: float | None = None) -> int | None:
        """Outcomes of the canary by which it is shown to keep to this, with probability POWER.
        None: never. share: of the requests that are the canary's. control, treated: the
        revisions' shares of failures; without `treated` the canary's are as many, or, where a
        canary that is as good can't pass, half as many."""
        if treated is None:
            treated = control if self.noninferiority_margin else control / 2
        return treated_needed(
            control,
            treated,
            self.noninferiority_margin,
            treated_share=share,
            level=LEVEL,
            power=POWER,
        )

    def fewest(self, share: float) -> int | None:
        """The same in the best case: without it nothing can be shown. None: not with any number."""
        return self.needed(share, 0.0 if self.noninferiority_margin else 1.0, 0.0)

    def outlook(self, share: float, seen: Outcomes) -> str:
        """How far it is, at the stable revision's present share of failures."""
        now = seen.control_failed / seen.control if seen.control else 0.0
        needed = self.needed(share, now)
        if needed is None:
            return (
                f"{seen.treated:,} {self.WHAT} of the canary; where {now:.1%} {self.FAILED} none "
                "are enough"
            )
        better = "" if self.noninferiority_margin else " and half as many of the canary's"
        return (
            f"{seen.treated:,} of about {needed:,} {self.WHAT} of the canary, where {now:.1%} "
            f"{self.FAILED}{better}"
        )

    def plan(self, share: float) -> str:
        """What it takes to show this, before anything was counted."""
        sizes = {p: self.needed(share, p) for p in (0.0, 0.01, 0.05, 0.2)}
        told = [f"{n:,} where {p:.0%} {self.FAILED}" for p, n in sizes.items() if n is not None]
        better = "" if self.noninferiority_margin else ", if the canary halves them"
        return f"of {self.WHAT} {', '.join(told)}{better}"


class ErrorGate(Gate):
    NAME = "error_share_above_at_most"
    WHAT, FAILED = "requests", "fail"

    def counts(self, tally: Tally) -> tuple[int, int]:
        return tally.requests, tally.failed

    def line(self, stable: Tally, canary: Tally) -> str:
        gone = canary.unanswered + stable.unanswered
        unanswered = (
            f" ({canary.unanswered:,} and {stable.unanswered:,} of them had no first token by the "
            "time that they ended)"
        )
        return (
            f"{canary.failed:,} of {canary.requests:,} requests of the canary failed, "
            f"{stable.failed:,} of {stable.requests:,} of the stable revision's"
            f"{unanswered if gone else ''}; less than {self.bar:.1%} more is allowed"
        )


class VerdictGate(Gate):
    NAME = "good_share_below_at_most"
    WHAT, FAILED = "verdicts", "are bad"

    def counts(self, tally: Tally) -> tuple[int, int]:
        return tally.good + tally.bad, tally.bad

    def line(self, stable: Tally, canary: Tally) -> str:
        return (
            f"{canary.good:,} of {canary.good + canary.bad:,} verdicts on the canary were good, "
            f"{stable.good:,} of {stable.good + stable.bad:,} on the stable revision; less than "
            f"{self.bar:.1%} fewer is allowed"
        )


class FirstTokenGate(Gate):
    """A failure is a first token of the stable revision above a bound, or one of the canary above
    `bar` times that, or none at all until the client hung up or its time was over. Other errors
    are not slow.

    The bound is the highest that at least 5 % of the stable revision's first tokens before the
    block lie above, to a bucket's 5 %: with fewer above there would be no room for the canary to
    have fewer still. The canary's is rounded down, against it. A bound that is a little off
    compares the two at a neighbouring quantile."""

    NAME = "ttft_p95_ratio_at_most"
    WHAT, FAILED = "first tokens", "are slow"

    @property
    def noninferiority_margin(self) -> float:
        return 0.0

    def look(self, shown: Shown, stable: Tally, canary: Tally, ratio: float, last: bool) -> Shown:
        if not shown.stable.ttft:
            known = sum(stable.ttft.values()) >= _FEWEST
            return replace(shown, stable=stable, canary=canary) if known else shown
        return super().look(shown, stable, canary, ratio, last)

    def block(self, shown: Shown, stable: Tally, canary: Tally) -> Outcomes:
        ours = _bound(shown.stable.ttft)
        theirs = ours + buckets_of_ratio(self.bar)
        now = (*_slow(stable, ours), *_slow(canary, theirs))
        then = (*_slow(shown.stable, ours), *_slow(shown.canary, theirs))
        return Outcomes(*(one - other for one, other in zip(now, then, strict=True)))

    def kept(self, tally: Tally) -> Tally:
        return tally

    def needed(self, share: float, control: float, treated: float | None = None) -> int | None:
        return super().needed(share, control, 0.01 if treated is None else treated)

    def fewest(self, share: float) -> int | None:
        return self.needed(share, 1 - TAIL, 0.0)

    def outlook(self, share: float, seen: Outcomes) -> str:
        if not seen.control or not seen.treated:
            return f"0 {self.WHAT} of the canary beside enough of the stable revision's"
        ours, theirs = seen.treated_failed / seen.treated, seen.control_failed / seen.control
        needed = self.needed(share, theirs, ours)
        told = f"{ours:.1%} of the canary's are slow and {theirs:.1%} of the stable revision's"
        if needed is None:
            return f"{seen.treated:,} {self.WHAT} of the canary; where {told} none are enough"
        return f"{seen.treated:,} of about {needed:,} {self.WHAT} of the canary, where {told}"

    def plan(self, share: float) -> str:
        fewest, some = (self.needed(share, 1 - TAIL, slow) for slow in (0.0, 0.01))
        return f"of {self.WHAT} {fewest:,} where none are slow, {some:,} where 1% are"

    def line(self, stable: Tally, canary: Tally) -> str:
        ours, theirs = canary.ttft_quantile_s(TAIL), stable.ttft_quantile_s(TAIL)
        if ours is None or theirs is None:
            which = "canary" if ours is None else "stable revision"
            return f"no request of the {which} came to a first token"
        return (
            f"95 % of the canary's first tokens came within {ours:.3f} s, of the stable revision's "
            f"within {theirs:.3f} s: a ratio of {ours / theirs:.2f}, less than {self.bar:g} is "
            "allowed"
        )


def gates_of(require: CanaryRequire) -> list[Gate]:
    """Those that are asked."""
    kinds: tuple[type[Gate], ...] = (ErrorGate, FirstTokenGate, VerdictGate)
    bars = [(gate, getattr(require, gate.NAME)) for gate in kinds]
    return [gate(bar) for gate, bar in bars if bar is not None]


def detectable(gate: Gate, share: float, requests: int) -> float | None:
    """The least bar, in hundredths, that so many outcomes of the canary can show to be kept to
    where nothing fails. None: no bar."""
    bars = (replace(gate, bar=hundredths / 100) for hundredths in range(1, 100))
    return next((one.bar for one in bars if (one.fewest(share) or math.inf) <= requests), None)


def _bound(ttft: Mapping[int, int]) -> int:
    """The highest bucket that at least 5 % of these lie above."""
    total, above = sum(ttft.values()), 0
    for bucket in sorted(ttft, reverse=True):
        above += ttft[bucket]
        if above >= (1 - TAIL) * total - 1e-9:
            return bucket - 1
    raise AssertionError("there is at least one")


def _slow(tally: Tally, bound: int) -> tuple[int, int]:
    """(requests that were to have a first token, those that had none up to that bucket)."""
    above = sum(n for at, n in tally.ttft.items() if at > bound)
    return sum(tally.ttft.values()) + tally.unanswered, above + tally.unanswered


def tally_of(raw: Mapping[str, Any]) -> Tally:
    """Of what JSON made of one."""
    return Tally(**{**raw, "ttft": {int(at): count for at, count in raw["ttft"].items()}})
