"""What is counted of a canary and of the revision beside it: totals, and cohorts.

A cohort is the requests of both revisions that were assigned in one slot of time. What came of it
is known once each of them has ended, or once the longest that a gateway lets a request take is
over: then those that were not heard of again have failed. Outcomes as they end would not do: errors
end at once and answers late, so the first to end of a revision that is slower are all errors; and
of a revision that hangs nothing ends at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("stable", "canary")
_FIRST_BUCKET_S, _GROWTH, _BUCKETS = 0.001, 1.05, 320  # up to about 6,000 s, within 5 %


@dataclass(frozen=True)
class Tally:
    """What came of one revision's requests. requests: as a total, those that were answered or
    failed; of cohorts, all that were assigned. cancelled: whose clients hung up. unanswered: those
    of them that had no first token yet, and of cohorts also those whose time was over before it
    (as a total these are errors) and what was not heard of again. ttft: bucket → answers."""

    requests: int = 0
    errors: int = 0
    cancelled: int = 0
    unanswered: int = 0
    tokens: int = 0
    good: int = 0
    bad: int = 0
    ttft: Mapping[int, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Errors, and requests that waited for a first token until they ended."""
        return self.errors + self.unanswered

    def __add__(self, other: Tally) -> Tally:
        buckets = self.ttft.keys() | other.ttft.keys()
        return Tally(
            self.requests + other.requests,
            self.errors + other.errors,
            self.cancelled + other.cancelled,
            self.unanswered + other.unanswered,
            self.tokens + other.tokens,
            self.good + other.good,
            self.bad + other.bad,
            {at: self.ttft.get(at, 0) + other.ttft.get(at, 0) for at in buckets},
        )

    def ttft_quantile_s(self, share: float) -> float | None:
        """Time to first token in seconds that `share` of the answers kept to, rounded up by at
        most 5 %; None without any answer."""
        total, seen = sum(self.ttft.values()), 0
        for bucket in sorted(self.ttft):
            seen += self.ttft[bucket]
            if total and seen >= share * total:
                return _upper_edge_s(bucket)
        return None


@dataclass(frozen=True)
class Cohort:
    """The requests that were assigned in one slot of time. over_s: seconds since the slot ended by
    Redis' clock, negative while it goes on. given: how many each role was given. settled: how many
    of them have ended. tallies: what came of those."""

    number: int
    over_s: float
    given: Mapping[str, int]
    settled: Mapping[str, int]
    tallies: Mapping[str, Tally]

    def is_closed(self, patience_s: float) -> bool:
        """Whether all that can become of it is known."""
        if self.over_s < 0:
            return False
        return self.over_s >= patience_s or all(self.settled[r] >= self.given[r] for r in ROLES)

    def outcomes(self, role: str) -> Tally:
        """Of a closed one: every request that was given, the missing ones as unanswered."""
        given, tally = max(self.given[role], 0), self.tallies[role]
        missing = max(given - self.settled[role], 0)
        return tally + Tally(requests=given - tally.requests, unanswered=missing)


@dataclass(frozen=True)
class CanaryState:
    """One look at a canary. age_s: since it was opened. asked, given: requests that were assigned,
    and those of them that the canary got. evidence: what the step that watches it has kept
    (`Canaries.note`), read together with the counts. outcome: reason and words of its end.
    patience_s: the longest that a gateway lets a request take. cohorts: those that are not in the
    evidence yet, oldest first."""

    id: str
    state: str
    age_s: float
    asked: int
    given: int
    tallies: Mapping[str, Tally]
    evidence: str = ""
    outcome: str = ""
    patience_s: float = 0.0
    cohorts: tuple[Cohort, ...] = ()


def bucket_of(seconds: float) -> int:
    """Bucket of a time: times up to 1 ms in the first one, then 5 % wide each."""
    if seconds <= _FIRST_BUCKET_S:
        return 0
    return min(_BUCKETS, math.ceil(math.log(seconds / _FIRST_BUCKET_S, _GROWTH) - 1e-9))


def buckets_of_ratio(ratio: float) -> int:
    """How many whole buckets lie between two times of this ratio, rounded down."""
    return math.floor(math.log(ratio, _GROWTH) + 1e-9)


def _upper_edge_s(bucket: int) -> float:
    return float(_FIRST_BUCKET_S * _GROWTH**bucket)


def parse_state(fields: Mapping[str, str], cohorts: Mapping[str, str], now_s: float) -> CanaryState:
    """Of the two hashes that `canary_scripts.py` describes. now_s: Redis' clock."""
    counts: dict[str, dict[str, Any]] = {role: {} for role in ROLES}
    for key, value in fields.items():
        role, dot, what = key.partition(".")
        if dot:
            counts[role][what] = int(value)
    return CanaryState(
        id=fields["id"],
        state=fields["state"],
        age_s=max(0.0, now_s - int(fields["opened"]) / 1000),
        asked=int(fields.get("asked", 0)),
        given=int(fields.get("given", 0)),
        tallies={role: _tally(counts[role]) for role in ROLES},
        evidence=fields.get("evidence", ""),
        outcome=fields.get("outcome", ""),
        patience_s=int(fields.get("patience", 0)) / 1000,
        cohorts=_parse_cohorts(cohorts, now_s),
    )


def _parse_cohorts(fields: Mapping[str, str], now_s: float) -> tuple[Cohort, ...]:
    until: dict[int, int] = {}
    counts: dict[int, dict[str, dict[str, int]]] = {}
    for key, value in fields.items():
        number, what = key.split(".", 1)
        if what == "until":
            until[int(number)] = int(value)
            continue
        role, _, what = what.partition(".")
        of = counts.setdefault(int(number), {r: {} for r in ROLES})
        of[role][what] = int(value)
    return tuple(
        Cohort(
            number,
            now_s - until[number] / 1000,
            {role: counts[number][role].pop("given", 0) for role in ROLES},
            {role: counts[number][role].get("settled", 0) for role in ROLES},
            {role: _tally_of_settled(counts[number][role]) for role in ROLES},
        )
        for number in sorted(until.keys() & counts.keys())
    )


def _tally_of_settled(counts: Mapping[str, int]) -> Tally:
    renamed = {"requests" if what == "settled" else what: n for what, n in counts.items()}
    return _tally(renamed)


def _tally(counts: Mapping[str, int]) -> Tally:
    ttft = {int(what[5:]): n for what, n in counts.items() if what.startswith("ttft.")}
    return Tally(**{w: n for w, n in counts.items() if not w.startswith("ttft.")}, ttft=ttft)
