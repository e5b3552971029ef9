"""The share of a canary on a real Redis: kept by counting, over all gateways, at every moment."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import PATIENCE_S
from plinth.shared import canary, redis_keys
from plinth.shared.canary import Canaries, Chosen, answer_key, canary_name
from plinth.shared.canary_counts import Cohort, Tally, bucket_of
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound


@pytest.fixture(autouse=True)
def _the_route_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody renews it here, as a run does."""
    monkeypatch.setattr(canary, "ROUTE_S", 10 * PATIENCE_S)


async def opened(canaries: Canaries, share: float = 0.1, **more: Any) -> str:
    return await canaries.open("chat", "run-a", stable="m@1", canary="m@2", share=share, **more)


async def given_to_canary(canaries: Canaries, user: str = "") -> bool:
    chosen = await canaries.choose("chat", "m@2", user)
    assert chosen is not None
    assert chosen[0] == "run-a"
    return chosen[1] == "canary"


@pytest.mark.parametrize("share", [0.01, 0.1, 1 / 3, 0.5])
async def test_the_share_holds_at_every_moment(redis_client: Any, share: float) -> None:
    canaries = Canaries(redis_client)
    assert await opened(canaries, share) == "open"
    had = 0
    for asked in range(1, 301):
        had += await given_to_canary(canaries)
        assert share * asked - 1 < had <= share * asked + 1e-6


async def test_many_gateways_share_one_count(redis_client: Any) -> None:
    canaries = [Canaries(redis_client) for _ in range(5)]
    await opened(canaries[0], 0.2)
    had = 0
    for burst in range(10):
        had += sum(
            await asyncio.gather(
                *(given_to_canary(random.Random(burst).choice(canaries)) for _ in range(50))
            )
        )
    assert had == 100
    state = await canaries[0].state("chat")
    assert state is not None
    assert (state.asked, state.given) == (500, 100)


async def test_a_user_stays_with_one_revision_and_the_share_is_still_bounded(
    redis_client: Any,
) -> None:
    canaries = Canaries(redis_client)
    await opened(canaries, 0.2, sticky=True)
    rng = random.Random(3)
    users = [f"user-{i}" for i in range(200)]
    seen: dict[str, set[bool]] = {}
    had = 0
    for asked in range(1, 1001):
        user = rng.choice(users)
        got = await given_to_canary(canaries, user)
        seen.setdefault(user, set()).add(got)
        had += got
        assert had <= 0.2 * asked + 0.02 * max(asked, 50)
    stable = [user for user in seen if canary._point("chat", user) >= 0.2]
    assert all(seen[user] == {False} for user in stable)  # never on the canary
    assert any(seen[user] == {True} for user in seen)  # and some always


async def test_without_sticky_a_user_is_no_reason(redis_client: Any) -> None:
    canaries = Canaries(redis_client)
    await opened(canaries, 0.5)
    assert sum([await given_to_canary(canaries, "one and the same") for _ in range(100)]) == 50


async def test_who_may_open_and_how_it_ends(redis_client: Any) -> None:
    canaries = Canaries(redis_client)
    await opened(canaries)
    assert await opened(canaries) == "open"  # again: a renewal
    with pytest.raises(FailedPrecondition, match="of run-a"):
        await canaries.open("chat", "run-b", stable="m@1", canary="m@3", share=0.1)
    assert await canaries.choose("chat", "m@3") is None  # shards of something else
    await canaries.promote("chat", "run-b")  # not its own
    await canaries.promote("chat", "run-a")
    assert all([await given_to_canary(canaries) for _ in range(20)])
    await canaries.close("chat", "run-a")
    assert await canaries.choose("chat", "m@2") is None
    await canaries.promote("chat", "run-a")  # a closed one stays closed
    assert await opened(canaries) == "closed"
    assert await canaries.open("chat", "run-b", stable="m@1", canary="m@3", share=0.1) == "open"


async def test_a_route_that_is_not_renewed_lapses_with_its_counts_kept(
    redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "ROUTE_S", 0.05)
    canaries = Canaries(redis_client)
    await opened(canaries, 0.5)
    await given_to_canary(canaries)
    async with asyncio.timeout(PATIENCE_S):
        while await canaries.choose("chat", "m@2") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    monkeypatch.setattr(canary, "ROUTE_S", 10 * PATIENCE_S)
    await opened(canaries, 0.5)
    state = await canaries.state("chat")
    assert state is not None
    assert state.asked >= 1


async def settle(canaries: Canaries, role: str, outcome: str, **more: Any) -> None:
    values = {"tokens": 3, "ttft_s": 0.02, "answer": "a", **more}
    await canaries.settle("chat", "run-a", role, outcome=outcome, **values)


async def test_outcomes_and_verdicts(redis_client: Any) -> None:
    canaries = Canaries(redis_client)
    await opened(canaries)
    mine = answer_key("acme", "r1")
    await settle(canaries, "canary", "ok", answer=mine)
    await settle(canaries, "canary", "error", tokens=0, ttft_s=None)
    await settle(canaries, "canary", "cancelled")
    await settle(canaries, "stable", "ok", ttft_s=0.5)
    await canaries.settle(
        "chat", "run-z", "stable", outcome="ok", tokens=9, ttft_s=1.0, answer="b"
    )  # of a canary that is over
    for _ in range(3):  # judged once, however often it is said
        assert await canaries.report("chat", answer=mine, good=False) == "canary"
    with pytest.raises(NotFound):
        await canaries.report("chat", answer=answer_key("other", "r1"), good=True)
    assert await canaries.report_revision("chat", "m@1", good=True) == "stable"
    with pytest.raises(NotFound):
        await canaries.report_revision("chat", "m@7", good=True)
    state = await canaries.state("chat")
    assert state is not None
    buckets = {bucket_of(0.02): 2}
    assert state.tallies["canary"] == Tally(2, 1, 1, 0, 6, 0, 1, buckets)
    assert state.tallies["stable"] == Tally(1, 0, 0, 0, 3, 1, 0, {bucket_of(0.5): 1})
    await canaries.close("chat", "run-a")
    await canaries.open("chat", "run-b", stable="m@1", canary="m@3", share=0.1)
    with pytest.raises(FailedPrecondition):
        await canaries.report("chat", answer=mine, good=True)
    with pytest.raises(FailedPrecondition):
        await canaries.report_revision("none", "m@1", good=True)


async def test_answers_are_remembered_in_a_bounded_way(
    redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "MAX_ANSWERS", 10)
    canaries = Canaries(redis_client)
    await opened(canaries, 0.5)
    for number in range(30):
        await canaries.choose("chat", "m@2", answer=f"a{number}")
    answers, times = canary._answers("chat")
    assert await redis_client.hlen(answers) == await redis_client.zcard(times) == 10
    with pytest.raises(NotFound):
        await canaries.report("chat", answer="a3", good=True)
    assert await canaries.report("chat", answer="a29", good=True) == "canary"
    # What is as old as that is forgotten, too.
    await redis_client.zadd(times, {"a28": 1})
    with pytest.raises(NotFound):
        await canaries.report("chat", answer="a28", good=True)
    await canaries.choose("chat", "m@2", answer="new")
    assert not await redis_client.hexists(answers, "a28")


async def test_a_command_that_is_sent_twice_counts_once(redis_client: Any) -> None:
    """As redis-py does when a connection breaks after the command was done."""
    canaries = Canaries(redis_client)
    await opened(canaries, 0.5)
    hash_ = redis_keys.canary("chat")
    common = [*canary._answers("chat"), canary._cohorts("chat")]
    for _ in range(4):
        answer = await canaries._choose(
            keys=[hash_, redis_keys.canary("chat", "choice-1"), *common],
            args=["m@2", "", 0.02, 60, "a1", 60_000, 9, 500, 5000, 600_000],
        )
        assert answer[1:] == [b"stable", b"1"]
        await canaries._settle(
            keys=[hash_, redis_keys.canary("chat", "once-1"), *common],
            args=["run-a", "stable", "ok", 1, "", 60, "a1", 60_000, 9, 1],
        )
    state = await canaries.state("chat")
    assert state is not None
    assert (state.asked, state.tallies["stable"].requests) == (1, 1)
    (cohort,) = state.cohorts
    assert (cohort.given["stable"], cohort.settled["stable"]) == (1, 1)


async def chosen(canaries: Canaries, **more: Any) -> Chosen:
    found = await canaries.choose("chat", "m@2", **more)
    assert found is not None
    return found


async def cohorts(canaries: Canaries) -> tuple[Cohort, ...]:
    state = await canaries.state("chat")
    assert state is not None
    return state.cohorts


async def test_requests_count_in_the_cohort_in_which_they_were_assigned(
    redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late they end, and what never ends is missing; by several gateways."""
    monkeypatch.setattr(canary, "_SLOT_S", (3600.0, 3600.0))
    gateways = [Canaries(redis_client) for _ in range(3)]
    await opened(gateways[0], 0.5)
    first = [await chosen(gateways[n % 3], within_s=60.0 + n) for n in range(8)]
    assert {one.cohort for one in first} == {1}
    await redis_client.hset(redis_keys.canary("chat"), "cohort_until", 1)
    assert {(await chosen(one)).cohort for one in gateways} == {2}

    outcomes = ["ok", "error", "cancelled", "refused"]
    for gateway, one, outcome in zip(gateways * 2, first[:5], [*outcomes, "ok"], strict=False):
        more = {"tokens": 1, "ttft_s": 0.1 if outcome == "ok" else None, "answer": "a"}
        await gateway.settle("chat", *one[:2], outcome=outcome, cohort=one.cohort, **more)
    left: dict[str, Any] = {"tokens": 1, "ttft_s": 0.1, "answer": "a"}
    await gateways[0].settle("chat", *first[5][:2], outcome="cancelled", cohort=1, **left)
    left["ttft_s"] = None
    await gateways[0].settle("chat", *first[7][:2], outcome="late", cohort=1, **left)
    state = await gateways[0].state("chat")
    assert state is not None
    assert state.patience_s == 600  # the longest of any gateway
    one, two = state.cohorts
    assert (one.given, one.settled) == ({"stable": 4, "canary": 3}, {"stable": 3, "canary": 3})
    assert not one.is_closed(600)
    at = bucket_of(0.1)
    assert one.tallies["stable"] == Tally(3, 0, 1, 1, ttft={at: 2})
    assert one.tallies["canary"] == Tally(3, 1, 1, 1, ttft={at: 1})
    assert one.outcomes("stable") == Tally(4, 0, 1, 2, ttft={at: 2})  # one is missing
    totals = state.tallies["canary"]
    assert (totals.requests, totals.errors, totals.cancelled, totals.unanswered) == (2, 2, 1, 0)
    assert two.over_s < 0
    assert sum(two.given.values()) == 3


async def test_what_is_in_the_evidence_is_forgotten_and_ends_without_a_word(
    redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "_SLOT_S", (0.0, 0.0))  # each request has its own
    canaries = Canaries(redis_client)
    await opened(canaries, 0.5)
    found = []
    for _ in range(12):
        found.append(await chosen(canaries))
        await redis_client.hset(redis_keys.canary("chat"), "cohort_until", 1)
    assert [one.number for one in await cohorts(canaries)] == list(range(1, 13))
    await canaries.note("chat", "run-a", "so far", 11)
    for one in found:
        await canaries.settle(
            "chat", *one[:2], outcome="ok", tokens=1, ttft_s=0.1, answer="a", cohort=one.cohort
        )
    (left,) = await cohorts(canaries)
    assert (left.number, left.settled) == (12, {"stable": 0, "canary": 1})
    state = await canaries.state("chat")
    assert state is not None
    assert state.tallies["canary"].requests == 6  # the totals have all
    # Another canary begins with nothing.
    await canaries.close("chat", "run-a", "WHY because")
    assert (await canaries.state("chat")).outcome == "WHY because"  # type: ignore[union-attr]
    await canaries.open("chat", "run-b", stable="m@1", canary="m@3", share=0.1)
    assert await cohorts(canaries) == ()


async def test_slots_are_bounded_in_number_however_long_requests_take(redis_client: Any) -> None:
    """By a clock that is set: a slot is a fiftieth of the canary's age, and at least a 128th of
    what its evidence may wait for."""
    canaries = Canaries(redis_client)
    await opened(canaries, 0.5)
    hash_ = redis_keys.canary("chat")

    async def now_ms() -> float:
        seconds, micros = await redis_client.time()
        return float(seconds) * 1000 + micros / 1000

    for age_s, within_s, lasts_s in [
        (1, 600, 0.5), (100, 600, 2.0), (4e3, 600, 5.0), (4e3, 3600, 3600 / 128)
    ]:  # fmt: skip
        before = await now_ms()
        opened_ms = int(before - age_s * 1000)
        await redis_client.hset(hash_, mapping={"opened": opened_ms, "cohort_until": 1})
        await chosen(canaries, within_s=within_s)
        after = await now_ms()
        until = int(await redis_client.hget(hash_, "cohort_until"))
        late = (after - before) / 50  # older by then
        assert before + lasts_s * 1000 - 3 <= until <= after + lasts_s * 1000 + late + 3


async def test_a_canary_is_given_as_many_requests_as_it_may_take(redis_client: Any) -> None:
    canaries = Canaries(redis_client)
    await opened(canaries, 0.5, requests=3)
    assert sum([await given_to_canary(canaries) for _ in range(50)]) == 3
    await canaries.promote("chat", "run-a")
    assert all([await given_to_canary(canaries) for _ in range(5)])


@given(st.lists(st.floats(0.0011, 1000), min_size=1, max_size=50), st.floats(0.01, 1))
def test_quantiles_are_within_five_percent(times: list[float], share: float) -> None:
    counts: dict[int, int] = {}
    for time in times:
        counts[bucket_of(time)] = counts.get(bucket_of(time), 0) + 1
    exact = next(t for i, t in enumerate(sorted(times), 1) if i >= share * len(times))
    found = Tally(ttft=counts).ttft_quantile_s(share)
    assert found is not None
    assert exact * 0.999999 <= found <= exact * 1.0500001


def test_names_and_no_answers() -> None:
    assert canary_name("chat") == "chat.canary"
    assert Tally().ttft_quantile_s(0.95) is None
    with pytest.raises(InvalidArgument):
        canary_name("chat.canary")
