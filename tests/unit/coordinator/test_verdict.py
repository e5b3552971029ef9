"""When a canary takes over, is rolled back, or is watched on: by tallies made by hand."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from plinth.algos.intervals import wilson
from plinth.coordinator.verdict import CanaryRequire, judge
from plinth.shared.canary import CanaryState, Tally, bucket_of


def tally(requests: int, errors: int = 0, ttft_s: float = 0.1, **more: int) -> Tally:
    answers = {bucket_of(ttft_s): requests - errors}
    return Tally(requests=requests, errors=errors, ttft=answers, **more)


def decide(stable: Tally, canary: Tally, age_s: float = 10, **require: object) -> tuple[str, str]:
    asked, given = stable.requests + canary.requests, canary.requests
    state = CanaryState("r", "open", age_s, asked, given, {"stable": stable, "canary": canary})
    found = judge(state, CanaryRequire(**require), requests=100, seconds=60)
    return found.decision, found.why


def test_it_waits_for_its_requests_then_takes_over() -> None:
    assert decide(tally(800), tally(99)) == ("wait", "99 of 100 requests")
    decision, why = decide(tally(900), tally(100))
    assert decision == "promote"
    assert why == "100 requests (10.0% of all), 0 errors"


def test_time_ends_it_with_what_there_is() -> None:
    assert decide(tally(300), tally(40), age_s=60)[0] == "promote"
    assert decide(tally(300), tally(19), age_s=60)[0] == "reject"
    assert decide(tally(0), tally(0), age_s=60)[0] == "reject"


@pytest.mark.parametrize("errors", range(6))
def test_errors_are_clear_as_soon_as_an_interval_says_so(errors: int) -> None:
    low = binomtest(errors, 5).proportion_ci(method="wilson").low
    decision, _ = decide(tally(50), tally(5, errors))
    assert decision == ("reject" if low > 0.01 else "wait")


def test_too_few_errors_to_be_clear_count_at_the_end() -> None:
    assert decide(tally(900), tally(99, 2))[0] == "wait"
    assert decide(tally(900), tally(100, 2))[0] == "reject"
    assert decide(tally(900, 18), tally(100, 2))[0] == "promote"  # the stable one is no better
    assert decide(tally(900), tally(100, 2), error_share_above_at_most=0.05)[0] == "promote"
    assert decide(tally(900), tally(100, 100), error_share_above_at_most=None)[0] == "reject"


@pytest.mark.parametrize(
    ("slower", "decision"), [(0.5, "promote"), (1.9, "promote"), (2.2, "reject")]
)
def test_first_tokens(slower: float, decision: str) -> None:
    assert decide(tally(900), tally(100, ttft_s=0.1 * slower))[0] == decision
    assert decide(tally(900), tally(100, ttft_s=9), ttft_p95_ratio_at_most=None)[0] == "promote"


def test_verdicts_are_waited_for_and_decide() -> None:
    asks = {"good_share_below_at_most": 0.05, "verdicts": 30}
    stable = tally(900, good=80, bad=20)
    assert decide(stable, tally(100), **asks)[0] == "wait"
    assert decide(stable, tally(100), age_s=60, **asks)[0] == "reject"
    assert decide(stable, tally(100, good=24, bad=6), **asks)[0] == "promote"
    assert decide(stable, tally(100, good=22, bad=8), **asks)[0] == "reject"
    # Clear long before: nobody likes it.
    assert decide(stable, tally(12, good=0, bad=12), **asks)[0] == "reject"
    assert decide(stable, tally(12, good=0, bad=12))[0] == "wait"  # it was not asked


@pytest.mark.parametrize(("wins", "of"), [(0, 5), (3, 7), (40, 40), (500, 1000)])
def test_the_interval_is_wilsons(wins: int, of: int) -> None:
    truth = binomtest(wins, of).proportion_ci(method="wilson")
    assert wilson(wins, of) == pytest.approx((truth.low, truth.high))
    assert wilson(0, 0) == (0.0, 1.0)
