"""When a canary takes over, is rolled back, is watched on or is undecided: by tallies made by hand.
How often it is wrong is simulated in `test_canary_simulations.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from plinth.coordinator.canary_gates import CanaryRequire, Shown, gates_of
from plinth.coordinator.pipeline import parse
from plinth.coordinator.verdict import Decision, evidence_of, figures, judge
from plinth.shared.canary_counts import CanaryState, Cohort, Tally, bucket_of
from plinth.shared.errors import InvalidArgument


def tally(requests: int, errors: int = 0, ttft_s: float = 0.1, **more: int) -> Tally:
    """With times to first token of which one in twenty takes twice as long."""
    came = requests - errors
    slow = came // 20
    answers = {bucket_of(ttft_s): came - slow, bucket_of(2 * ttft_s): slow}
    return Tally(requests=requests, errors=errors, ttft=answers, **more)


ERRORS = {"ttft_p95_ratio_at_most": None}
TIMES = {"error_share_above_at_most": None}
VERDICTS = {**TIMES, **ERRORS, "good_share_below_at_most": 0.05}


def decide(
    *looks: tuple[Tally, Tally], age_s: float = 10, requests: int | None = None, **require: Any
) -> Decision:
    """What the last of these looks says, at totals of which each look's increase is a cohort."""
    evidence, found = "", Decision("", "")
    before = (Tally(), Tally())
    for number, now in enumerate(looks, 1):
        stable, canary = now
        new = [increase(one, was) for one, was in zip(now, before, strict=True)]
        state = CanaryState(
            "r",
            "open",
            age_s,
            stable.requests + canary.requests,
            canary.requests,
            {"stable": stable, "canary": canary},
            evidence,
            cohorts=(cohort(number, *new),),
        )
        found = judge(state, CanaryRequire(**require), requests=requests, seconds=60)
        evidence, before = found.evidence, now
        assert found.counted == number
    return found


def increase(now: Tally, was: Tally) -> Tally:
    ttft = {at: n - was.ttft.get(at, 0) for at, n in now.ttft.items()}
    return Tally(now.requests - was.requests, now.errors - was.errors, ttft=ttft)


def cohort(
    number: int, stable: Tally, canary: Tally, over_s: float = 0.0, missing: int = 0
) -> Cohort:
    """missing: requests of the canary that have not ended."""
    settled = {"stable": stable.requests, "canary": canary.requests}
    given = {**settled, "canary": canary.requests + missing}
    return Cohort(number, over_s, given, settled, {"stable": stable, "canary": canary})


def test_one_that_is_as_good_is_waited_for_then_takes_over() -> None:
    found = decide((tally(900), tally(100)), **ERRORS)
    assert found.action == "wait"
    assert found.why.startswith(
        "100 of about 334 requests of the canary, where 0.0% fail; 0 of 100"
    )
    found = decide(*((tally(90 * n), tally(10 * n)) for n in range(1, 41)), **ERRORS)
    assert (found.action, found.why) == ("promote", "400 requests (10.0% of all), 0 errors")


@pytest.mark.parametrize("end", [{"age_s": 60}, {"requests": 100}])
def test_the_end_leaves_it_undecided_and_says_what_would_have_told(end: dict[str, Any]) -> None:
    """By its requests or by its time; the point estimates are the same, and show nothing."""
    found = decide((tally(900, 9), tally(100, 1)), **ERRORS, **end)
    assert found.action == "undecided"
    assert "undecided after 100 requests of the canary in" in found.why
    assert "100 of about 1,582 requests of the canary, where 1.0% fail; 1 of 100" in found.why
    none = decide((tally(0), tally(0)), age_s=60, **ERRORS)
    assert none.action == "undecided"


def test_a_canary_that_fails_everything_goes_at_once() -> None:
    found = decide((tally(27), tally(3, 3)), **ERRORS)
    assert found.action == "reject"
    assert "3 of 3 requests of the canary failed, 0 of 27 of the stable" in found.why
    assert decide((tally(27, 27), tally(3, 3)), **ERRORS).action == "wait"  # so does the other
    assert decide((tally(0), tally(3, 3)), **ERRORS).action == "wait"  # is it the canary?


def test_a_wider_margin_forgives_and_asks_for_less() -> None:
    seen = [(tally(90 * n), tally(10 * n, n)) for n in range(1, 7)]
    assert decide(*seen, **ERRORS).action == "reject"
    assert decide(*seen, **ERRORS, error_share_above_at_most=0.1).action == "wait"
    assert decide(*seen, **ERRORS, error_share_above_at_most=0.5).action == "promote"


@pytest.mark.parametrize(
    ("slower", "decision"), [(0.5, "promote"), (1.0, "promote"), (2.0, "wait"), (4.5, "reject")]
)
def test_first_tokens(slower: float, decision: str) -> None:
    """The first look finds the stable revision's percentile, which later ones are counted by."""
    looks = [(tally(n * 90), tally(n * 10, ttft_s=0.1 * slower)) for n in (1, 10, 20, 30)]
    found = decide(*looks, **TIMES)
    assert found.action == decision
    if decision == "reject":
        assert "a ratio of 4.4" in found.why or "a ratio of 4.5" in found.why
    assert decide(looks[-1], **TIMES).action == "wait"  # nothing to count by yet


def test_verdicts_are_waited_for_and_decide() -> None:
    stable = tally(900, good=720, bad=180)
    asks = {**VERDICTS, "verdicts": 90}
    assert decide((stable, tally(100)), **asks).action == "wait"
    assert decide((stable, tally(100)), age_s=60, **asks).action == "undecided"
    assert decide((stable, tally(100, good=75, bad=5)), **asks).action == "wait"
    assert decide((stable, tally(100, good=86, bad=5)), **asks).action == "promote"
    assert decide((stable, tally(100, good=40, bad=60)), **asks).action == "reject"
    assert "fewer is allowed" in decide((stable, tally(100, good=40, bad=60)), **asks).why
    # Clear long before: nobody likes it.
    assert decide((stable, tally(12, good=0, bad=12)), **asks).action == "reject"
    assert decide((stable, tally(12, good=0, bad=12)), **ERRORS).action == "wait"  # not asked


def test_all_gates_must_be_kept_to_and_one_that_is_broken_is_enough() -> None:
    asks: dict[str, Any] = {"error_share_above_at_most": 0.1, "good_share_below_at_most": 0.1}
    good = {"good": 90, "bad": 10}
    looks = [
        (tally(900 * n, good=810 * n, bad=90 * n), tally(100 * n, good=90 * n, bad=10 * n))
        for n in range(1, 6)
    ]
    assert decide(*looks, **asks).action == "promote"
    slow = [(stable, replace(canary, ttft={bucket_of(0.9): 100})) for stable, canary in looks]
    assert decide(*slow, **asks).action != "promote"
    last = (looks[-1][0], replace(looks[-1][1], errors=200))
    assert decide(*looks[:1], last, **asks).action == "reject"
    assert good


def test_the_evidence_survives_being_written_down() -> None:
    found = decide((tally(90), tally(10)), (tally(190, 3), tally(20, 1)))
    state = CanaryState("r", "open", 1, 210, 20, {}, found.evidence)
    for gate in gates_of(CanaryRequire()):
        shown = evidence_of(state)[gate.NAME]
        assert Shown.read(json.loads(json.dumps(shown.raw()))) == shown
    assert evidence_of(state)["ttft_p95_ratio_at_most"].canary.ttft == tally(20, 1).ttft
    assert evidence_of(state)["error_share_above_at_most"].evidence.seen.treated == 20
    tallies = {"stable": tally(190, 3), "canary": tally(20, 1)}
    told = figures(replace(state, tallies=tallies), CanaryRequire())
    assert json.loads(json.dumps(told))["evidence"]["ttft_p95_ratio_at_most"]["log_worse"] < 3


def open_canary(*cohorts: Cohort, evidence: str = "", **more: Any) -> CanaryState:
    given = sum(one.given["canary"] for one in cohorts)
    asked = given + sum(one.given["stable"] for one in cohorts)
    nothing = {"stable": Tally(), "canary": Tally()}
    return CanaryState(
        "r", "open", 10, asked, given, nothing, evidence, patience_s=630, cohorts=cohorts, **more
    )


def test_a_cohort_counts_when_all_of_it_has_ended_and_none_before_an_earlier_one() -> None:
    """Those where nothing hangs are over first, so that they would say that nothing fails."""
    require = CanaryRequire(**ERRORS)
    hangs = cohort(1, tally(90), tally(5), over_s=20, missing=5)
    well = cohort(2, tally(90), tally(10), over_s=10)
    found = judge(open_canary(hangs, well), require, requests=None, seconds=60)
    assert (found.action, found.counted) == ("wait", 0)
    assert "20 more are not counted yet" in found.why
    # Once it can't end any more, what is missing has failed.
    hangs = replace(hangs, over_s=630.0)
    found = judge(open_canary(hangs, well), require, requests=None, seconds=60)
    assert (found.action, found.counted) == ("reject", 2)
    assert "5 of 20 requests of the canary failed, 0 of 180 of the stable" in found.why
    assert "5 and 0 of them had no first token by the time that they ended" in found.why
    # A slot that goes on may get more.
    now = cohort(1, tally(900), tally(400), over_s=-1)
    assert judge(open_canary(now), require, requests=None, seconds=60).counted == 0


def test_hung_up_before_the_first_token_has_failed_and_was_slow_and_after_it_has_not() -> None:
    gone = Tally(requests=40, cancelled=40, unanswered=40)
    told = Tally(requests=40, cancelled=40, ttft={bucket_of(0.1): 40})
    stable = tally(400)
    for require, word in ((ERRORS, "40 of 60 requests"), (TIMES, "95 % of the canary's")):
        cohorts = [cohort(1, stable, tally(20)), cohort(2, stable, gone)]
        found = judge(open_canary(*cohorts), CanaryRequire(**require), requests=None, seconds=60)
        assert found.action == "reject"
        assert word in found.why
        cohorts[1] = cohort(2, stable, told)
        found = judge(open_canary(*cohorts), CanaryRequire(**require), requests=None, seconds=60)
        assert found.action == "wait"


def test_all_requests_are_used_up_once_each_of_them_counts() -> None:
    require = CanaryRequire(**ERRORS)
    late = open_canary(cohort(1, tally(90), tally(9), over_s=1, missing=1))
    assert judge(late, require, requests=10, seconds=60).action == "wait"
    assert judge(late, require, requests=10, seconds=10).action == "undecided"
    over = open_canary(cohort(1, tally(90), tally(10), over_s=1))
    assert judge(over, require, requests=10, seconds=60).action == "undecided"


def test_evidence_of_an_earlier_version_is_begun_anew() -> None:
    old = json.dumps({"error_share_above_at_most": {"stable": {"requests": 3}}})
    state = open_canary(cohort(1, tally(90), tally(10)), evidence=old)
    assert judge(state, CanaryRequire(), requests=None, seconds=60).counted == 1
    assert figures(state, CanaryRequire())["evidence"] == {}


def test_a_block_waits_for_enough_of_both_streams() -> None:
    """What comes of one long before the other is kept for its next block; at the end all counts."""
    gate = gates_of(CanaryRequire(**ERRORS))[0]
    shown = Shown()
    for arrived in range(180):
        shown = gate.look(shown, tally(arrived), tally(40), ratio=9, last=False)
        assert shown == Shown()
    assert gate.look(shown, tally(180), tally(40), ratio=9, last=False).evidence.seen.control == 180
    assert gate.look(shown, tally(50), tally(40), ratio=9, last=True).evidence.seen.control == 50
    assert gate.look(shown, tally(0), tally(40), ratio=9, last=True) == shown


PIPELINE = """
name: ship
steps:
  trial: {kind: canary, model: chat@2, name: chat, share: 0.3, requests: 20, require: {verdicts: 9}}
"""


def test_requests_that_can_not_decide_are_refused_with_what_would() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(PIPELINE)
    said = caught.value.message
    assert caught.value.field == "steps.trial.requests"
    assert "20 of the canary can't show that it keeps to error_share_above_at_most: 0.01" in said
    assert "334 where 0% fail, 1,771 where 1% fail" in said
    assert "allow 0.16 in require.error_share_above_at_most" in said
    # Each piece of advice is taken, and no less would do.
    require = "steps.trial.require"
    parse(PIPELINE, {require: "{error_share_above_at_most: 0.16, ttft_p95_ratio_at_most: null}"})
    with pytest.raises(InvalidArgument, match=r"allow 0\.16"):
        parse(PIPELINE, {require: "{error_share_above_at_most: 0.15}"})
    parse(PIPELINE, {"steps.trial.requests": "334"})
    with pytest.raises(InvalidArgument, match="at least 334"):
        parse(PIPELINE, {"steps.trial.requests": "333"})
    parse(PIPELINE, {"steps.trial.requests": "null"})
    with pytest.raises(InvalidArgument, match=r"ttft_p95_ratio_at_most: 2, which takes .* 148"):
        parse(PIPELINE, {require: "{error_share_above_at_most: 0.2}"})
    parse(PIPELINE, {require: "{error_share_above_at_most: 0.2}", "steps.trial.requests": "148"})


def test_a_canary_that_asks_for_nothing_is_refused() -> None:
    nothing = "{error_share_above_at_most: null, ttft_p95_ratio_at_most: null}"
    with pytest.raises(InvalidArgument, match="require asks for nothing"):
        parse(PIPELINE, {"steps.trial.require": nothing})


@pytest.mark.parametrize("gate", ["error_share_above_at_most", "good_share_below_at_most"])
@pytest.mark.parametrize("bar", ["1", "0.9999999"])
def test_a_gate_that_allows_everything_is_refused(gate: str, bar: str) -> None:
    more = {"steps.trial.requests": "null"}
    with pytest.raises(InvalidArgument) as caught:
        parse(PIPELINE, {**more, f"steps.trial.require.{gate}": bar})
    assert caught.value.field == f"steps.trial.require.{gate}"
    assert "allows any share of failures" in caught.value.message
    # Each piece of advice is taken.
    for better in ("0.5", "null"):
        spec: Any = parse(PIPELINE, {**more, f"steps.trial.require.{gate}": better}).steps["trial"]
        assert "of  " not in spec.plan()
        assert not spec.plan().endswith("of requests ")


@pytest.mark.parametrize(("bar", "says"), [("0.02", "334 where 0%"), ("0", "if the canary halves")])
def test_the_plan_is_told_before(bar: str, says: str) -> None:
    requests = {"steps.trial.requests": "null"}
    spec: Any = parse(
        PIPELINE, {**requests, "steps.trial.require.good_share_below_at_most": bar}
    ).steps["trial"]
    assert "at a share of 0.3" in spec.plan()
    assert says in spec.plan()
