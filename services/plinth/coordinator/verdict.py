"""Is a canary as good as the revision that it would replace? A pure decision on what came of both
revisions' requests and the evidence so far.

Every look may decide, and looks may be as many as one likes: the evidence is a product of
e-values (`algos/sequential.py`: Turner, Ly, Grünwald 2024), which exceeds 1/level with probability
`level` at most, over all looks together, where what it speaks against is true. Both revisions'
shares of failures are unknown to it. So

- a canary goes as soon as any gate is shown to be broken: a level of 5 %, shared by the gates;
- it takes over as soon as every gate is shown to be kept to: 5 % for each, since all must be;
- at the end of its requests or its time it is undecided, and not promoted.

Requests enter the evidence by the cohort in which they were assigned, one cohort after the other,
each once all of it is over: by when they end, those that hang would never be seen, and of a slower
revision the failures alone at first. Verdicts have no end to wait for, and enter as they come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from plinth.coordinator.canary_gates import (
    LEVEL,
    TAIL,
    CanaryRequire,
    Gate,
    Shown,
    VerdictGate,
    gates_of,
    tally_of,
)
from plinth.shared.canary_counts import ROLES, CanaryState, Tally


@dataclass(frozen=True)
class Decision:
    """action: "wait", "promote", "reject" or "undecided". why: for people. evidence: to be kept
    for the next look (`CanaryState.evidence`). counted: the last cohort that is in it."""

    action: str
    why: str
    evidence: str = ""
    counted: int = 0


@dataclass(frozen=True)
class Kept:
    """What is kept between looks. counted: the last cohort that is in here. tallies: of all these
    cohorts. shown: by gate."""

    counted: int = 0
    tallies: Mapping[str, Tally] = field(default_factory=lambda: {role: Tally() for role in ROLES})
    shown: Mapping[str, Shown] = field(default_factory=dict)

    def raw(self) -> str:
        """As JSON."""
        tallies = {role: asdict(tally) for role, tally in self.tallies.items()}
        shown = {name: one.raw() for name, one in self.shown.items()}
        return json.dumps({"counted": self.counted, "tallies": tallies, "shown": shown})

    @classmethod
    def read(cls, text: str) -> Kept:
        """Of what `raw` made; from nothing where an earlier version of Plinth made it, which is
        valid from any moment on."""
        raw: dict[str, Any] = json.loads(text) if text else {}
        if "counted" not in raw:
            return cls()
        tallies = {role: tally_of(one) for role, one in raw["tallies"].items()}
        shown = {name: Shown.read(one) for name, one in raw["shown"].items()}
        return cls(raw["counted"], tallies, shown)


def judge(
    state: CanaryState, require: CanaryRequire, *, requests: int | None, seconds: float
) -> Decision:
    """One look. It is undecided when `requests` requests were given to the canary (None: any
    number) and have ended, or after `seconds`."""
    gates = gates_of(require)
    kept = _with_cohorts(Kept.read(state.evidence), state, gates)
    last = state.age_s >= seconds or _is_used_up(kept, state, requests)
    stable, canary = _tallies(kept, state)
    ratio = _ratio(kept)
    shown = {
        gate: gate.look(kept.shown.get(gate.NAME, Shown()), stable, canary, ratio, last)
        for gate in gates
    }
    kept = replace(kept, shown={gate.NAME: one for gate, one in shown.items()})
    told = (kept.raw(), kept.counted)
    broken = -math.log(LEVEL / len(shown))
    for gate, one in shown.items():
        if one.evidence.log_worse() >= broken:
            return Decision("reject", f"{gate.line(stable, canary)}: that is broken", *told)
    open_ = [gate for gate, one in shown.items() if not _is_shown(gate, one)]
    wanted = require.verdicts if require.good_share_below_at_most is not None else 0
    votes = min(tally.good + tally.bad for tally in (stable, canary))
    if not open_ and votes >= wanted:
        return Decision("promote", summary(state), *told)
    more = [_more(gate, shown[gate], state, stable, canary) for gate in open_]
    more += [f"{votes:,} of {wanted:,} verdicts on each"] if votes < wanted else []
    late = _late(kept, state)
    if not last:
        return Decision("wait", more[0] + late, *told)
    why = f"undecided after {_spent(state)}: {'; '.join(more)}{late}"
    return Decision("undecided", why, *told)


def _with_cohorts(kept: Kept, state: CanaryState, gates: list[Gate]) -> Kept:
    """With the cohorts whose outcomes are known by now. None is taken before those that were
    assigned before it: the cohorts where nothing hangs are the first to be over."""
    for cohort in state.cohorts:
        if cohort.number <= kept.counted:
            continue
        if not cohort.is_closed(state.patience_s):
            break
        tallies = {role: kept.tallies[role] + cohort.outcomes(role) for role in ROLES}
        kept = replace(kept, counted=cohort.number, tallies=tallies)
        stable, canary = tallies["stable"], tallies["canary"]
        ratio = _ratio(kept)
        shown = {
            gate.NAME: gate.look(kept.shown.get(gate.NAME, Shown()), stable, canary, ratio, False)
            for gate in gates
            if not isinstance(gate, VerdictGate)
        }
        kept = replace(kept, shown={**kept.shown, **shown})
    return kept


def _tallies(kept: Kept, state: CanaryState) -> list[Tally]:
    """What counts of both: the cohorts, and the verdicts as they come."""
    return [
        replace(kept.tallies[role], good=state.tallies[role].good, bad=state.tallies[role].bad)
        for role in ROLES
    ]


def _ratio(kept: Kept) -> float:
    """The stable revision's requests to one of the canary's, by those that count: what is known
    later must not decide where a block of earlier ones ends."""
    stable, canary = (kept.tallies[role].requests for role in ROLES)
    return stable / canary if canary else 0.0


def _is_used_up(kept: Kept, state: CanaryState, requests: int | None) -> bool:
    """Whether the canary was given all its requests and each of them counts."""
    return requests is not None and state.given >= requests and not _uncounted(kept, state)


def _uncounted(kept: Kept, state: CanaryState) -> int:
    """The canary's requests that are not in the evidence yet."""
    return sum(one.given["canary"] for one in state.cohorts if one.number > kept.counted)


def _late(kept: Kept, state: CanaryState) -> str:
    uncounted = _uncounted(kept, state)
    return (
        f"; {uncounted:,} more are not counted yet: of the requests of that time not all have ended"
        if uncounted
        else ""
    )


def evidence_of(state: CanaryState) -> Mapping[str, Shown]:
    """What was kept of the looks before, by gate."""
    return Kept.read(state.evidence).shown


def summary(state: CanaryState) -> str:
    """One line: what the canary had and how it did."""
    canary = state.tallies["canary"]
    share = state.given / state.asked if state.asked else 0.0
    return f"{canary.requests:,} requests ({share:.1%} of all), {canary.errors:,} errors"


def figures(state: CanaryState, require: CanaryRequire) -> dict[str, object]:
    """What a report says of both revisions, JSON-ready. evidence: by gate, logarithms of the
    products of e-values; 3.0 is one of 20, which is a level of 5 %."""
    shown = evidence_of(state)
    return {
        "asked": state.asked,
        "given": state.given,
        "seconds": state.age_s,
        "evidence": {
            gate.NAME: {
                "log_not_worse": shown[gate.NAME].evidence.log_not_worse(
                    gate.noninferiority_margin
                ),
                "log_worse": shown[gate.NAME].evidence.log_worse(),
            }
            for gate in gates_of(require)
            if gate.NAME in shown
        },
        **{
            role: {
                "requests": tally.requests,
                "errors": tally.errors,
                "cancelled": tally.cancelled,
                "unanswered": tally.unanswered,
                "tokens": tally.tokens,
                "ttft_p95_s": tally.ttft_quantile_s(TAIL),
                "good": tally.good,
                "bad": tally.bad,
            }
            for role, tally in state.tallies.items()
        },
    }


def _is_shown(gate: Gate, shown: Shown) -> bool:
    return shown.evidence.log_not_worse(gate.noninferiority_margin) >= -math.log(LEVEL)


def _more(gate: Gate, shown: Shown, state: CanaryState, stable: Tally, canary: Tally) -> str:
    """How many outcomes would make clear what is not yet, and what came so far."""
    share = state.given / state.asked if state.given else 0.5
    return f"{gate.outlook(share, shown.evidence.seen)}; {gate.line(stable, canary)}"


def _spent(state: CanaryState) -> str:
    return f"{state.given:,} requests of the canary in {state.age_s:,.0f} s"
