"""Is a canary as good as the revision that it would replace? A pure decision on two tallies.

What is clear early ends early: a canary whose errors or verdicts are worse with 95 % certainty gets
no more traffic. Everything else is decided once enough was seen, or when the time is up.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from plinth.algos.intervals import wilson
from plinth.shared.canary import CanaryState, Tally

MIN_SEEN = 20  # requests of the canary without which there is nothing to decide by
_EARLY = 5  # requests or verdicts before which nothing is clear
_TAIL = 0.95


class CanaryRequire(BaseModel):
    """What the canary must keep to, against the stable revision; None: not asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 0.01: at most one point above the stable revision's share of failed requests.
    error_share_above_at_most: float | None = Field(default=0.01, ge=0, le=1)
    # 1.5: 95 % of the canary's first tokens come within 1.5 times the stable revision's time.
    ttft_p95_ratio_at_most: float | None = Field(default=2.0, gt=0, le=1000)
    # 0: at least the stable revision's share of good verdicts (ReportOutcome).
    good_share_below_at_most: float | None = Field(default=None, ge=0, le=1)
    # Verdicts on either revision that this takes.
    verdicts: int = Field(default=30, ge=1, le=1_000_000)


@dataclass(frozen=True)
class Verdict:
    """decision: "wait", "promote" or "reject". why: for people."""

    decision: str
    why: str


def judge(state: CanaryState, require: CanaryRequire, *, requests: int, seconds: float) -> Verdict:
    """Decides at `requests` requests of the canary, and at the latest after `seconds`."""
    stable, canary = state.tallies["stable"], state.tallies["canary"]
    if why := _clearly_worse(stable, canary, require):
        return Verdict("reject", why)
    votes = min(_votes(stable), _votes(canary))
    wanted = require.verdicts if require.good_share_below_at_most is not None else 0
    over = state.age_s >= seconds
    if not over and (canary.requests < requests or votes < wanted):
        more = f", {votes:,} of {wanted:,} verdicts" if wanted else ""
        return Verdict("wait", f"{canary.requests:,} of {requests:,} requests{more}")
    if canary.requests < min(requests, MIN_SEEN):
        return Verdict(
            "reject",
            f"the canary had {canary.requests:,} requests in {seconds:.0f} s, too few to tell",
        )
    if votes < wanted:
        return Verdict(
            "reject",
            f"{_votes(canary):,} verdicts on the canary and {_votes(stable):,} on the stable "
            f"revision came in {seconds:.0f} s; {wanted:,} of each are required",
        )
    why = _errors(stable, canary, require) or _slowness(stable, canary, require)
    why = why or _verdicts(stable, canary, require)
    return Verdict("reject", why) if why else Verdict("promote", summary(state))


def summary(state: CanaryState) -> str:
    """One line: what the canary had and how it did."""
    canary = state.tallies["canary"]
    share = state.given / state.asked if state.asked else 0.0
    return f"{canary.requests:,} requests ({share:.1%} of all), {canary.errors:,} errors"


def figures(state: CanaryState) -> dict[str, object]:
    """What a report says of both revisions, JSON-ready."""
    return {
        "asked": state.asked,
        "given": state.given,
        "seconds": state.age_s,
        **{
            role: {
                "requests": tally.requests,
                "errors": tally.errors,
                "cancelled": tally.cancelled,
                "tokens": tally.tokens,
                "ttft_p95_s": tally.ttft_quantile_s(_TAIL),
                "good": tally.good,
                "bad": tally.bad,
            }
            for role, tally in state.tallies.items()
        },
    }


def _clearly_worse(stable: Tally, canary: Tally, require: CanaryRequire) -> str:
    bar = require.error_share_above_at_most
    if bar is not None and canary.requests >= _EARLY:
        low, _ = wilson(canary.errors, canary.requests)
        if low > _share(stable.errors, stable.requests) + bar:
            return _error_line(stable, canary, bar)
    bar, votes = require.good_share_below_at_most, _votes(canary)
    if bar is not None and votes >= _EARLY and _votes(stable) >= _EARLY:
        _, high = wilson(canary.good, votes)
        low, _ = wilson(stable.good, _votes(stable))
        if high < low - bar:
            return _verdict_line(stable, canary, bar)
    return ""


def _errors(stable: Tally, canary: Tally, require: CanaryRequire) -> str:
    bar = require.error_share_above_at_most
    if bar is None:
        return ""
    above = _share(canary.errors, canary.requests) - _share(stable.errors, stable.requests)
    return _error_line(stable, canary, bar) if above > bar else ""


def _slowness(stable: Tally, canary: Tally, require: CanaryRequire) -> str:
    bar = require.ttft_p95_ratio_at_most
    ours, theirs = canary.ttft_quantile_s(_TAIL), stable.ttft_quantile_s(_TAIL)
    if bar is None or theirs is None:
        return ""
    if ours is None:
        return "no request of the canary came to a first token"
    if ours <= bar * theirs:
        return ""
    return (
        f"95 % of the canary's first tokens came within {ours:.3f} s, of the stable revision's "
        f"within {theirs:.3f} s: a ratio of {ours / theirs:.2f}, at most {bar:g} is required"
    )


def _verdicts(stable: Tally, canary: Tally, require: CanaryRequire) -> str:
    bar = require.good_share_below_at_most
    if bar is None:
        return ""
    below = _share(stable.good, _votes(stable)) - _share(canary.good, _votes(canary))
    return _verdict_line(stable, canary, bar) if below > bar else ""


def _error_line(stable: Tally, canary: Tally, bar: float) -> str:
    return (
        f"{canary.errors:,} of {canary.requests:,} requests of the canary failed, "
        f"{stable.errors:,} of {stable.requests:,} of the stable revision's; at most {bar:.1%} "
        "more is allowed"
    )


def _verdict_line(stable: Tally, canary: Tally, bar: float) -> str:
    return (
        f"{canary.good:,} of {_votes(canary):,} verdicts on the canary were good, "
        f"{stable.good:,} of {_votes(stable):,} on the stable revision; at most {bar:.1%} less "
        "is allowed"
    )


def _votes(tally: Tally) -> int:
    return tally.good + tally.bad


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
