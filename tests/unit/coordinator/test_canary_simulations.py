"""How often canaries take over, are rolled back, or stay undecided, by the code that decides it,
over all looks: identical ones, worse ones, and the sizes that docs/promotion.md tells.

2,000 runs each are slow; 200 of the same, by the same seeds, are not. Where the truth is inside of
what is allowed or outside, the bound of 5 % is asked without slack. At its very edge, where as many
as 5 % may be wrong, the count of so many runs may be as high as one time in a thousand at 5 %.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, lognorm

from plinth.coordinator.canary_gates import CanaryRequire, ErrorGate, VerdictGate
from plinth.coordinator.verdict import judge
from plinth.shared.canary import CanaryState, Tally, bucket_of

RUNS = [200, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
DOCS = Path(__file__).parents[3] / "docs" / "promotion.md"
# Chances of the buckets of times to first token: a median of 0.2 s with a long tail.
_TIMES = range(bucket_of(5.0) + 1)
_EDGES = [0.001 * 1.05**at for at in _TIMES]
_CUMULATIVE = lognorm.cdf(_EDGES, s=0.4, scale=0.2)
TTFT = np.append(np.diff(_CUMULATIVE, prepend=0.0), 1 - _CUMULATIVE[-1])


@dataclass
class Revision:
    """A revision whose requests come as they come. times: chances of the buckets of times to first
    token, None for none."""

    errors: float = 0.0
    bad: float = 0.0
    times: np.ndarray | None = None
    tally: Tally = field(default_factory=Tally)

    def serve(self, rng: np.random.Generator, mean: float) -> None:
        """About so many requests more, each with a verdict."""
        new = int(rng.poisson(mean))
        failed, bad = int(rng.binomial(new, self.errors)), int(rng.binomial(new, self.bad))
        was = self.tally
        ttft = dict(was.ttft)
        if self.times is not None:
            counts = rng.multinomial(new - failed, self.times)
            for bucket in np.flatnonzero(counts):
                ttft[int(bucket)] = ttft.get(int(bucket), 0) + int(counts[bucket])
        self.tally = replace(
            was,
            requests=was.requests + new,
            errors=was.errors + failed,
            good=was.good + new - bad,
            bad=was.bad + bad,
            ttft=ttft,
        )


def trial(
    rng: np.random.Generator,
    stable: Revision,
    canary: Revision,
    require: CanaryRequire,
    *,
    requests: int,
    share: float = 0.1,
    at_a_time: float = 25.0,
) -> str:
    """One canary, looked at until it is decided. at_a_time: requests of it between two looks."""
    stable, canary = replace(stable), replace(canary)
    evidence, looks = "", 0
    while True:
        looks += 1
        canary.serve(rng, at_a_time)
        stable.serve(rng, at_a_time * (1 - share) / share)
        given = canary.tally.requests
        asked = given + stable.tally.requests
        tallies = {"stable": stable.tally, "canary": canary.tally}
        state = CanaryState("r", "open", looks / 2, asked, given, tallies, evidence)
        verdict = judge(state, require, requests=requests, seconds=1e9)
        if verdict.action != "wait":
            return verdict.action
        evidence = verdict.evidence


def decisions(runs: int, *revisions: Revision, **options: Any) -> Counter[str]:
    rng = np.random.default_rng(2024)
    return Counter(trial(rng, *revisions, **options) for _ in range(runs))


ERRORS = CanaryRequire(ttft_p95_ratio_at_most=None)


@pytest.mark.parametrize("runs", RUNS)
def test_identical_revisions_are_not_rejected(runs: int) -> None:
    options: dict[str, Any] = {"require": ERRORS, "requests": 1582, "at_a_time": 40.0}
    found = decisions(runs, Revision(0.01), Revision(0.01), **options)
    print(found)
    assert found["reject"] <= 0.05 * runs
    assert found["promote"] >= 0.7 * runs  # what the documentation calls the size for 80 %


@pytest.mark.parametrize("runs", RUNS)
def test_a_canary_five_times_as_bad_is_not_promoted(runs: int) -> None:
    found = decisions(runs, Revision(0.01), Revision(0.05), require=ERRORS, requests=3000)
    print(found)
    assert found["promote"] <= 0.05 * runs
    assert found["reject"] >= 0.9 * runs


@pytest.mark.parametrize("runs", [pytest.param(200, marks=pytest.mark.slow), RUNS[1]])
@pytest.mark.parametrize("at_a_time", [0.5, 25.0])
def test_one_that_is_worse_by_just_the_margin_is_neither(runs: int, at_a_time: float) -> None:
    """The edge, where every bound is tightest: after each request or two, and after many."""
    require = CanaryRequire(error_share_above_at_most=0.1, ttft_p95_ratio_at_most=None)
    options: dict[str, Any] = {"require": require, "requests": 150, "at_a_time": at_a_time}
    found = decisions(runs, Revision(0.02), Revision(0.12), **options)
    print(found)
    most = binom.ppf(0.999, runs, 0.05)
    assert found["promote"] <= most
    assert found["reject"] <= most


ALL = CanaryRequire(error_share_above_at_most=0.05, good_share_below_at_most=0.05)


@pytest.mark.parametrize("runs", [pytest.param(200, marks=pytest.mark.slow), RUNS[1]])
def test_all_gates_together(runs: int) -> None:
    """Identical in errors, times and verdicts; then worse in one of them."""
    same = Revision(0.01, 0.1, TTFT)
    options: dict[str, Any] = {"require": ALL, "requests": 600, "share": 0.3}
    found = decisions(runs, same, same, **options)
    print(found)
    assert found["reject"] <= 0.05 * runs
    assert found["promote"] >= 0.7 * runs
    slower = replace(same, times=np.append(np.zeros(20), TTFT[:-20] / TTFT[:-20].sum()))
    for worse in (replace(same, errors=0.1), replace(same, bad=0.25), slower):
        found = decisions(runs, same, worse, **options)
        print(found)
        assert found["promote"] <= 0.05 * runs


def rows() -> list[tuple[float, float, float, int]]:
    """(share of failures, bar, traffic share, size) as the documentation's table has them."""
    table = re.findall(
        r"^\| ([\d.]+) % \| ([\d.]+) points? \| ([\d.]+) % \| ([\d,]+) \|", DOCS.read_text(), re.M
    )
    return [
        (float(p) / 100, float(m) / 100, float(s) / 100, int(n.replace(",", "")))
        for p, m, s, n in table
    ]


def test_the_documentation_tells_the_sizes_that_the_screen_does() -> None:
    assert len(rows()) >= 8
    for failing, bar, share, size in rows():
        assert ErrorGate(bar).needed(share, failing) == size
        assert VerdictGate(bar).needed(share, failing) == size


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_power_at_the_documented_sizes() -> None:
    """80 % is told, by a diffusion; simulated it is 65 to 100 %, which the documentation says."""
    for failing, bar, share, size in rows():
        if size > 6000:
            continue
        require = CanaryRequire(error_share_above_at_most=bar, ttft_p95_ratio_at_most=None)
        at_a_time = max(1.0, size / 100)
        found = decisions(
            2000, Revision(failing), Revision(failing),
            require=require, requests=size + math.ceil(at_a_time), share=share, at_a_time=at_a_time,
        )  # fmt: skip
        print(failing, bar, share, size, found)
        assert found["promote"] >= 0.62 * 2000
        assert found["reject"] <= 0.05 * 2000
