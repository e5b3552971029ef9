"""Is a canary as good as the revision that it would replace? A pure decision on two tallies and the
evidence so far.

Every look may decide, and looks may be as many as one likes: the evidence is a product of
e-values (`algos/sequential.py`: Turner, Ly, Grünwald 2024), which exceeds 1/level with probability
`level` at most, over all looks together, where what it speaks against is true. Both revisions'
shares of failures are unknown to it. So

- a canary goes as soon as any gate is shown to be broken: a level of 5 %, shared by the gates;
- it takes over as soon as every gate is shown to be kept to: 5 % for each, since all must be;
- at the end of its requests or its time it is undecided, and not promoted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from plinth.coordinator.canary_gates import LEVEL, TAIL, CanaryRequire, Gate, Shown, gates_of
from plinth.shared.canary import CanaryState


@dataclass(frozen=True)
class Decision:
    """action: "wait", "promote", "reject" or "undecided". why: for people. evidence: to be kept
    for the next look (`CanaryState.evidence`)."""

    action: str
    why: str
    evidence: str = ""


def judge(
    state: CanaryState, require: CanaryRequire, *, requests: int | None, seconds: float
) -> Decision:
    """One look. It is undecided after `requests` requests of the canary (None: any number), or
    after `seconds`."""
    stable, canary = state.tallies["stable"], state.tallies["canary"]
    last = state.age_s >= seconds or (requests is not None and canary.requests >= requests)
    ratio = (state.asked - state.given) / state.given if state.given else 0.0
    before = evidence_of(state)
    shown = {
        gate: gate.look(before.get(gate.NAME, Shown()), stable, canary, ratio, last)
        for gate in gates_of(require)
    }
    kept = json.dumps({gate.NAME: one.raw() for gate, one in shown.items()})
    broken = -math.log(LEVEL / len(shown))
    for gate, one in shown.items():
        if one.evidence.log_worse() >= broken:
            return Decision("reject", f"{gate.line(stable, canary)}: that is broken", kept)
    open_ = [gate for gate, one in shown.items() if not _is_shown(gate, one)]
    wanted = require.verdicts if require.good_share_below_at_most is not None else 0
    votes = min(tally.good + tally.bad for tally in (stable, canary))
    if not open_ and votes >= wanted:
        return Decision("promote", summary(state), kept)
    more = [_more(gate, state) for gate in open_]
    more += [f"{votes:,} of {wanted:,} verdicts on each"] if votes < wanted else []
    if not last:
        return Decision("wait", more[0], kept)
    return Decision("undecided", f"undecided after {_spent(state)}: {'; '.join(more)}", kept)


def evidence_of(state: CanaryState) -> Mapping[str, Shown]:
    """What was kept of the looks before, by gate."""
    raw = json.loads(state.evidence) if state.evidence else {}
    return {name: Shown.read(one) for name, one in raw.items()}


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


def _more(gate: Gate, state: CanaryState) -> str:
    """How many outcomes would make clear what is not yet, and what came so far."""
    stable, canary = state.tallies["stable"], state.tallies["canary"]
    share = state.given / state.asked if state.given else 0.5
    return f"{gate.outlook(share, stable, canary)}; {gate.line(stable, canary)}"


def _spent(state: CanaryState) -> str:
    return f"{state.tallies['canary'].requests:,} requests of the canary in {state.age_s:,.0f} s"
