"""Tasks, leases and judgements on a real Redis: one annotator at a time, nothing lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from redis.asyncio import Redis

from plinth.coordinator.preferences.membership import collections
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.records import MAX_HELD, Grant, PreferenceRecords
from plinth.coordinator.preferences.specs import make_task
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PlinthError,
    ResourceExhausted,
)
from plinth.v1 import chat_pb2, sampling_pb2
from plinth.v1 import preferences_pb2 as pb

COLLECTION = "c"
HUMAN, RULE = pb.JUDGEMENT_SOURCE_HUMAN, pb.JUDGEMENT_SOURCE_RULE


def spec(task_id: str, responses: int = 2, **fields: object) -> pb.PreferenceTaskSpec:
    return pb.PreferenceTaskSpec(
        prompt=[chat_pb2.ChatMessage(role="user", content=f"prompt of {task_id}")],
        responses=[
            pb.PreferenceResponse(response_id=f"r{i}", text=f"text {i}") for i in range(responses)
        ],
        **fields,  # type: ignore[arg-type]
    )


def task(task_id: str, responses: int = 2, **fields: object) -> rec.PreferenceTaskRecord:
    if "wanted" in fields:
        fields["wanted_judgement_count"] = fields.pop("wanted")
    return made(spec(task_id, responses, **fields), task_id)


def made(asked: pb.PreferenceTaskSpec, task_id: str) -> rec.PreferenceTaskRecord:
    return make_task(asked, COLLECTION, "task.spec", task_id=task_id)


def verdict(task_id: str, annotator: str, *order: str, **fields: object) -> rec.JudgementRecord:
    values = {"source": HUMAN, "ranking": tiers([[one] for one in order or ("r0", "r1")])}
    return rec.JudgementRecord(task_id=task_id, annotator=annotator, **(values | fields))  # type: ignore[arg-type]


@pytest.fixture
def records(redis_client: Redis) -> PreferenceRecords:
    return PreferenceRecords(redis_client, COLLECTION)


async def run_out(redis: Redis, task_id: str) -> None:
    """The lease's time is over, without waiting for it."""
    await redis.zadd(redis_keys.PreferenceKeys(COLLECTION).leases, {task_id: 1}, xx=True)


async def leased(records: PreferenceRecords, annotator: str, task_id: str = "") -> Grant:
    grant = await records.lease(annotator, lease_s=60, task_id=task_id)
    assert grant is not None
    return grant


async def test_from_task_to_judgement(records: PreferenceRecords, redis_client: Redis) -> None:
    made = await records.create(task("t"))
    assert made.state == pb.PREFERENCE_TASK_STATE_OPEN
    grant = await leased(records, "ann")
    assert grant.task.task_id == "t"
    assert sorted(grant.shown) == ["r0", "r1"]
    assert await records.shown("t", grant.fence) == grant.shown
    assert (await records.get("t")).state == pb.PREFERENCE_TASK_STATE_LEASED
    assert await records.lease("bob", lease_s=60) is None
    judged, number = await records.submit(verdict("t", "ann", reason="better"), grant.fence)
    assert (number, judged.reason) == (1, "better")
    assert (await records.get("t")).state == pb.PREFERENCE_TASK_STATE_DONE
    assert [one async for part in records.judgements(1) for one in part] == [judged]
    assert await collections(redis_client) == [COLLECTION]
    counts = await records.counts()
    assert (counts.total, counts.open, counts.leased, counts.judgements) == (1, 0, 0, 1)


async def test_the_same_call_twice_is_one(records: PreferenceRecords) -> None:
    for _ in range(2):
        await records.create(task("t", wanted=2))
    with pytest.raises(AlreadyExists, match="asks for something else"):
        await records.create(task("t", responses=3))
    await records.create(task("u"))
    first, again = [await records.lease("ann", lease_s=60, nonce="n1") for _ in range(2)]
    assert first == again
    assert first is not None
    other = await records.lease("ann", lease_s=60, nonce="n2")
    assert other is not None
    assert other.task.task_id == "u"
    for _ in range(2):
        judged = await records.submit(verdict("t", "ann"), first.fence)
        assert judged[1] == 1
    with pytest.raises(AlreadyExists, match="otherwise"):
        await records.submit(verdict("t", "ann", "r1", "r0"), first.fence)
    for _ in range(2):
        await records.release("u", "ann", other.fence, skip=False)
    assert await records.revision() == 1


async def test_never_twice_to_the_same_annotator(records: PreferenceRecords) -> None:
    await records.create(task("t", wanted=3))
    for name in ("ann", "bob"):
        grant = await leased(records, name)
        await records.submit(verdict("t", name), grant.fence)
        assert await records.lease(name, lease_s=60) is None
        with pytest.raises(AlreadyExists, match=f"{name} has judged"):
            await records.lease(name, lease_s=60, task_id="t")
    grant = await leased(records, "cat")
    await records.submit(verdict("t", "cat"), grant.fence)
    with pytest.raises(FailedPrecondition, match="all the judgements") as caught:
        await records.lease("dan", lease_s=60, task_id="t")
    assert caught.value.reason == "TASK_DONE"


async def test_who_holds_what(records: PreferenceRecords, redis_client: Redis) -> None:
    await records.create(task("t", wanted=2))
    grant = await leased(records, "ann")
    with pytest.raises(Aborted) as caught:
        await records.lease("bob", lease_s=60, task_id="t")
    assert caught.value.reason == "TASK_HELD"
    assert await leased(records, "ann", "t") == grant  # their own again
    for call in (
        records.submit(verdict("t", "bob"), grant.fence),
        records.release("t", "bob", grant.fence, skip=False),
        records.renew("t", "bob", grant.fence, lease_s=60),
    ):
        with pytest.raises(Aborted) as caught:
            await call
        assert caught.value.reason == "TASK_HELD"
    with pytest.raises(Aborted) as caught:
        await records.submit(verdict("t", "ann"), grant.fence + 1)
    assert caught.value.reason == "FENCE_STALE"
    assert await records.renew("t", "ann", grant.fence, lease_s=600) > grant.expires_unix_ms

    await run_out(redis_client, "t")  # and nobody has noticed yet
    with pytest.raises(Aborted) as caught:
        await records.submit(verdict("t", "ann"), grant.fence)
    assert caught.value.reason == "LEASE_EXPIRED"
    theirs = await leased(records, "bob")
    assert theirs.fence > grant.fence
    with pytest.raises(Aborted) as caught:
        await records.submit(verdict("t", "ann"), grant.fence)
    assert caught.value.reason == "LEASE_EXPIRED"
    await records.submit(verdict("t", "bob"), theirs.fence)
    assert (await leased(records, "ann")).task.task_id == "t"
    with pytest.raises(NotFound):
        await records.submit(verdict("nope", "ann"), 1)


async def test_release_and_skip(records: PreferenceRecords) -> None:
    await records.create(task("a"))
    await records.create(task("b"))
    first = await leased(records, "ann")
    await records.release("a", "ann", first.fence, skip=False)
    again = await leased(records, "ann")
    assert again.task.task_id == "a"
    await records.release("a", "ann", again.fence, skip=True)
    assert (await leased(records, "ann")).task.task_id == "b"
    assert await records.lease("ann", lease_s=60) is None
    assert (await leased(records, "bob")).task.task_id == "a"
    with pytest.raises(Aborted) as caught:
        await records.submit(verdict("a", "ann"), again.fence)
    assert caught.value.reason == "TASK_HELD"


async def test_one_annotator_holds_so_many(records: PreferenceRecords) -> None:
    for i in range(MAX_HELD + 1):
        await records.create(task(f"t{i}"))
    grants = [await leased(records, "ann") for _ in range(MAX_HELD)]
    with pytest.raises(ResourceExhausted) as caught:
        await records.lease("ann", lease_s=60)
    assert caught.value.reason == "TOO_MANY_HELD"
    await records.release(grants[3].task.task_id, "ann", grants[3].fence, skip=False)
    assert (await leased(records, "ann")).task.task_id == "t3"


async def test_an_annotator_who_has_judged_a_thousand_finds_the_next(
    records: PreferenceRecords, redis_client: Redis
) -> None:
    """More than one script looks at: the search goes on behind them."""
    for i in range(1002):
        await records.create(task(f"t{i}", wanted=2))
    async with redis_client.pipeline() as pipe:
        for i in range(1001):
            pipe.hset(redis_keys.PreferenceKeys(COLLECTION).task(f"t{i}"), "by:human:ann", "skip")
        await pipe.execute()
    assert (await leased(records, "ann")).task.task_id == "t1001"
    assert await records.lease("ann", lease_s=60) is None


async def test_rules_need_no_lease_and_do_not_count(records: PreferenceRecords) -> None:
    await records.create(task("t"))
    grant = await leased(records, "ann")
    for _ in range(2):
        assert (await records.add(verdict("t", "length", source=RULE)))[1] == 1
    with pytest.raises(AlreadyExists):
        await records.add(verdict("t", "length", "r1", "r0", source=RULE))
    assert (await records.submit(verdict("t", "ann"), grant.fence))[1] == 2
    for i in range(15):
        await records.add(verdict("t", f"rule{i}", source=RULE))
    with pytest.raises(ResourceExhausted) as caught:
        await records.add(verdict("t", "one-more", source=RULE))
    assert caught.value.reason == "TOO_MANY_JUDGES"
    with pytest.raises(NotFound):
        await records.add(verdict("nope", "length", source=RULE))


async def test_sampling_comes_first(records: PreferenceRecords) -> None:
    sampled = spec("t", 1, samples=[pb.SampleSpec(model="chat")])
    first = await records.create(made(sampled, "t"))
    assert first.state == pb.PREFERENCE_TASK_STATE_SAMPLING
    assert await records.lease("ann", lease_s=60) is None
    with pytest.raises(FailedPrecondition) as caught:
        await records.lease("ann", lease_s=60, task_id="t")
    assert caught.value.reason == "TASK_NOT_READY"
    with pytest.raises(FailedPrecondition):
        await records.add(verdict("t", "length", source=RULE))
    first.responses.add(response_id="r1", text="sampled")
    for _ in range(2):
        await records.fill(first)
    grant = await leased(records, "ann")
    assert sorted(grant.shown) == ["r0", "r1"]
    await records.create(made(sampled, "u"))
    await records.fail("u", "no model")
    failed = await records.get("u")
    assert (failed.state, failed.error) == (pb.PREFERENCE_TASK_STATE_FAILED, "no model")


async def test_closing(records: PreferenceRecords) -> None:
    with pytest.raises(NotFound):
        await records.close("unjudged")
    await records.create(task("unjudged"))
    await records.close("unjudged")
    assert (await records.get("unjudged")).state == pb.PREFERENCE_TASK_STATE_DONE
    assert await records.lease("bob", lease_s=60) is None
    await records.create(task("held", wanted=5))
    grant = await leased(records, "ann")
    await records.close("held")
    await records.submit(verdict("held", "ann"), grant.fence)  # what is held may be judged
    assert (await records.get("held")).state == pb.PREFERENCE_TASK_STATE_DONE
    assert await records.lease("bob", lease_s=60) is None


async def test_what_nobody_judged_or_holds_is_deleted(records: PreferenceRecords) -> None:
    for name in ("judged", "held", "unjudged"):
        await records.create(task(name))
    await records.add(verdict("judged", "length", source=RULE))
    await records.lease("ann", lease_s=60, task_id="held")
    for name, reason in (("judged", "TASK_JUDGED"), ("held", "TASK_HELD")):
        with pytest.raises(FailedPrecondition) as caught:
            await records.remove(name)
        assert caught.value.reason == reason
    await records.remove("unjudged")
    with pytest.raises(NotFound):
        await records.remove("unjudged")
    assert (await records.counts()).total == 2
    assert await records.lease("bob", lease_s=60, task_id="judged")


async def test_a_collection_has_limits(redis_client: Redis) -> None:
    few = PreferenceRecords(redis_client, COLLECTION, max_tasks=1)
    await few.create(task("a"))
    with pytest.raises(ResourceExhausted, match="that is reached") as caught:
        await few.create(task("b"))
    assert caught.value.reason == "COLLECTION_FULL"
    small = PreferenceRecords(redis_client, "small", max_bytes=40)
    with pytest.raises(ResourceExhausted):
        await small.create(task("a"))
    assert (await small.counts()).total == 0
    # Bytes are counted over all collections: the first one's leave no room in another.
    held = int(await redis_client.hget(redis_keys.PreferenceKeys(COLLECTION).counters, "bytes"))  # type: ignore[arg-type, misc]
    with pytest.raises(ResourceExhausted):
        await PreferenceRecords(redis_client, "other", max_bytes=held).create(task("a"))
    await PreferenceRecords(redis_client, "other", max_bytes=3 * held).create(task("a"))


async def test_judgements_take_room_too(redis_client: Redis) -> None:
    """16 of rules and models for each task, with words of 16 KB."""
    records = PreferenceRecords(redis_client, COLLECTION)
    for id in ("a", "b"):
        await records.create(task(id, wanted=2))
    counters = redis_keys.PreferenceKeys(COLLECTION).counters
    held = int(await redis_client.hget(counters, "bytes"))  # type: ignore[arg-type, misc]
    full = PreferenceRecords(redis_client, COLLECTION, max_bytes=held + 1)
    grant = await full.lease("ann", lease_s=60, task_id="a")
    assert grant is not None
    by_rule = verdict("a", "length", "r0", "r1", source=RULE)
    first = await full.add(by_rule)
    late = verdict("a", "ann", "r0", "r1")
    for more in (
        full.add(verdict("b", "length", "r0", "r1", source=RULE)),
        full.submit(late, grant.fence),
    ):
        with pytest.raises(ResourceExhausted) as caught:
            await more
        assert caught.value.reason == "COLLECTION_FULL"
    assert await full.add(by_rule) == first  # what is there is known
    assert (await full.create(task("a", wanted=2))).task_id == "a"
    assert (await full.counts()).judgements == 1
    await records.submit(late, grant.fence)  # the lease is as it was


async def test_a_collection_is_forgotten(records: PreferenceRecords, redis_client: Redis) -> None:
    for i in range(3):
        await records.create(task(f"t{i}", wanted=2))
    grant = await leased(records, "ann")
    await records.submit(verdict("t0", "ann"), grant.fence)
    await leased(records, "bob")
    other = PreferenceRecords(redis_client, "other")
    await other.create(task("mine"))
    assert await records.delete() == 3
    with pytest.raises(NotFound):
        await records.delete()
    assert await collections(redis_client) == ["other"]
    left = [key async for key in redis_client.scan_iter(match="*preferences/c}*")]
    assert left == []
    assert (await other.get("mine")).task_id == "mine"
    await records.create(task("t0"))  # a new beginning
    assert await records.revision() == 0


async def test_the_order_of_presentation_is_fair(records: PreferenceRecords) -> None:
    """600 leases of three responses: each of the six orders about a hundred times."""
    await records.create(task("t", responses=3))
    seen: Counter[tuple[str, ...]] = Counter()
    for _ in range(600):
        grant = await leased(records, "ann")
        seen[grant.shown] += 1
        await records.release("t", "ann", grant.fence, skip=False)
    assert len(seen) == 6
    assert sum((count - 100) ** 2 / 100 for count in seen.values()) < 25.7  # p = 1e-4, 5 d.o.f.


async def test_many_annotators_race(records: PreferenceRecords, redis_client: Redis) -> None:
    """Six annotators, 40 tasks of three judgements each, all at once; leases run out meanwhile.
    Whoever is granted a task is its only holder, and each judgement that was accepted is kept."""
    for i in range(40):
        await records.create(task(f"t{i}", wanted=3))
    holder: dict[str, str] = {}
    accepted: Counter[tuple[str, str]] = Counter()
    lapsed: set[tuple[str, int]] = set()

    async def annotator(name: str) -> None:
        chance = random.Random(name)
        mine = PreferenceRecords(redis_client, COLLECTION)
        while grant := await mine.lease(name, lease_s=60):
            one = grant.task.task_id
            assert one not in holder, f"{one} is held by {holder[one]} and was given to {name}"
            assert (one, name) not in accepted
            holder[one] = name
            await asyncio.sleep(0)
            act = chance.random()
            del holder[one]
            if act < 0.1:
                lapsed.add((one, grant.fence))
                await run_out(redis_client, one)
            elif act < 0.2:
                await mine.release(one, name, grant.fence, skip=False)
            else:
                await mine.submit(verdict(one, name), grant.fence)
                accepted[one, name] += 1

    await asyncio.gather(*(annotator(f"ann{i}") for i in range(6)))
    assert lapsed
    # What was held by others when an annotator found nothing is judged by whoever comes last.
    await asyncio.gather(*(annotator(f"ann{i}") for i in range(6)))
    kept = Counter(
        (j.task_id, j.annotator)
        for part in [p async for p in records.judgements(await records.revision())]
        for j in part
    )
    assert kept == accepted
    assert set(kept.values()) == {1}
    assert all(sum(1 for t, _ in kept if t == f"t{i}") == 3 for i in range(40))


class Model:
    """What a collection should hold, in plain Python."""

    def __init__(self) -> None:
        self.wanted: dict[str, int] = {}
        self.by: dict[str, set[str]] = {}
        self.skipped: dict[str, set[str]] = {}
        self.holder: dict[str, tuple[str, int]] = {}
        self.late: set[str] = set()  # of those held: the lease has run out
        self.log: list[tuple[str, str]] = []

    def sweep(self) -> None:
        for one in self.late:
            del self.holder[one]
        self.late.clear()

    def next_for(self, name: str) -> str | None:
        for one, wanted in self.wanted.items():
            if one in self.holder or len(self.by[one]) >= wanted:
                continue
            if name not in self.by[one] | self.skipped[one]:
                return one
        return None


@pytest.mark.parametrize("seed", range(6))
async def test_random_operations_against_a_model(redis_client: Redis, seed: int) -> None:
    chance, model = random.Random(seed), Model()
    records = PreferenceRecords(redis_client, COLLECTION)
    names = ["ann", "bob", "cat"]
    leases: list[tuple[str, str, int]] = []

    async def refused(call: object) -> bool:
        try:
            await call  # type: ignore[misc]
        except PlinthError as error:
            assert error.reason in {
                "LEASE_EXPIRED",
                "FENCE_STALE",
                "TASK_HELD",
                "TASK_JUDGED",
            }, error
            return True
        return False

    for step in range(400):
        name = chance.choice(names)
        act = chance.choice(["create", "lease", "lease", "lease", "submit", "submit", "release"])
        if chance.random() < 0.08 and model.holder:
            one = chance.choice(sorted(model.holder))
            await run_out(redis_client, one)
            model.late.add(one)
        elif act == "create" and len(model.wanted) < 30:
            wanted = chance.randrange(1, 4)
            await records.create(task(f"t{step}", wanted=wanted))
            model.wanted[f"t{step}"] = wanted
            model.by[f"t{step}"], model.skipped[f"t{step}"] = set(), set()
        elif act == "lease":
            model.sweep()
            grant = await records.lease(name, lease_s=60)
            assert (grant.task.task_id if grant else None) == model.next_for(name)
            if grant:
                leases.append((grant.task.task_id, name, grant.fence))
                model.holder[grant.task.task_id] = (name, grant.fence)
        elif leases:
            one, who, fence = chance.choice(leases)
            valid = model.holder.get(one) == (who, fence) and one not in model.late
            if act == "submit":
                if chance.random() < 0.2:  # by somebody else
                    other = chance.choice([n for n in names if n != who])
                    assert await refused(records.submit(verdict(one, other), fence))
                elif not await refused(records.submit(verdict(one, who), fence)):
                    if valid:
                        model.by[one].add(who)
                        model.log.append((one, who))
                        del model.holder[one]
                    else:
                        assert (one, who) in model.log  # the same judgement sent again
                else:
                    assert not valid
            else:
                skip = chance.random() < 0.3
                gone = await refused(records.release(one, who, fence, skip=skip))
                if valid:
                    assert not gone
                    del model.holder[one]
                    if skip:
                        model.skipped[one].add(who)
    kept = [j async for part in records.judgements(await records.revision()) for j in part]
    assert [(j.task_id, j.annotator) for j in kept] == model.log
    assert model.log


@pytest.mark.parametrize(
    ("ranking", "reason"),
    [
        ([["r0"], ["r9"]], "RANKING_UNKNOWN_RESPONSE"),
        ([["r0"], ["r0", "r1"]], "RANKING_DUPLICATE_RESPONSE"),
        ([["r0"]], "RANKING_MISSING_RESPONSE"),
        ([], "RANKING_MISSING_RESPONSE"),
        ([["r0", "r1"], []], "RANKING_EMPTY_TIER"),
    ],
)
def test_what_is_no_ranking(ranking: list[list[str]], reason: str) -> None:
    from plinth.coordinator.preferences.ranking import check_judgement

    with pytest.raises(InvalidArgument) as caught:
        check_judgement(tiers(ranking), False, "", ["r0", "r1"])
    assert caught.value.reason == reason
    assert caught.value.field.startswith("ranking")
    check_judgement([], True, "", ["r0", "r1"])
    with pytest.raises(InvalidArgument, match="not both"):
        check_judgement(tiers([["r0"], ["r1"]]), True, "", ["r0", "r1"])
    with pytest.raises(InvalidArgument, match="at most 4000"):
        check_judgement([], True, "x" * 4001, ["r0", "r1"])


def stopped(text: str, count: int) -> pb.PreferenceResponse:
    """A response that was sampled with so many stop ids."""
    sampling = sampling_pb2.SamplingParams(stop_token_ids=range(count))
    return pb.PreferenceResponse(text=text, sampling=sampling)


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"prompt": []}, "PROMPT_INVALID", "prompt"),
        ({"responses": []}, "RESPONSE_COUNT", "responses"),
        ({"responses": [pb.PreferenceResponse(text="one")]}, "RESPONSE_COUNT", "responses"),
        (
            {"responses": [pb.PreferenceResponse(text=str(i)) for i in range(9)]},
            "RESPONSE_COUNT",
            "",
        ),
        ({"responses": [pb.PreferenceResponse(text="same")] * 2}, "RESPONSE_TWICE", "responses.1"),
        (
            {"responses": [pb.PreferenceResponse(text="a"), pb.PreferenceResponse(text=" ")]},
            "RESPONSE_TEXT",
            "responses.1.text",
        ),
        (
            {
                "responses": [
                    pb.PreferenceResponse(text="a"),
                    pb.PreferenceResponse(text="x" * 65_537),
                ]
            },
            "RESPONSE_TEXT",
            "responses.1.text",
        ),
        ({"wanted_judgement_count": 6}, "INVALID_ARGUMENT", "wanted_judgement_count"),
        ({"answered_request_id": "x" * 129}, "INVALID_ARGUMENT", "answered_request_id"),
        (
            {"responses": [pb.PreferenceResponse(text="a"), stopped("b", 257)]},
            "INVALID_ARGUMENT",
            "responses.1.sampling.stop_token_ids",
        ),
        (
            {"responses": [pb.PreferenceResponse(text=t, weights_digest="x" * 257) for t in "ab"]},
            "INVALID_ARGUMENT",
            "responses.0.weights_digest",
        ),
        ({"gold": tiers([["r0"], ["r7"]])}, "RANKING_UNKNOWN_RESPONSE", "gold.1"),
        ({"gold": tiers([["r0", "r1"]])}, "INVALID_ARGUMENT", "gold"),
        ({"samples": [pb.SampleSpec(model="", count=1)]}, "INVALID_ARGUMENT", "samples.0.model"),
        (
            {"prompt": [chat_pb2.ChatMessage(role="user", content="x" * 65_537)]},
            "INVALID_ARGUMENT",
            "prompt",
        ),
        (
            {"prompt": [chat_pb2.ChatMessage(role="assistant", content="x")]},
            "PROMPT_INVALID",
            "prompt",
        ),
    ],
)
def test_what_is_no_task(change: dict[str, object], reason: str, field: str) -> None:
    wrong = spec("t")
    for name, value in change.items():
        wrong.ClearField(name)  # type: ignore[arg-type]
        wrong.MergeFrom(pb.PreferenceTaskSpec(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument) as caught:
        made(wrong, "t")
    assert caught.value.reason == reason
    assert caught.value.field.startswith("task.spec")
    assert field in caught.value.field


def test_ids_tell_nothing_of_the_order() -> None:
    texts = [pb.PreferenceResponse(text=text) for text in ("first", "second")]
    plain = pb.PreferenceTaskSpec(prompt=spec("t").prompt, responses=texts)
    one = made(plain, "t")
    assert one.responses[0].response_id != one.responses[1].response_id
    again = made(plain, "t")
    assert [r.response_id for r in again.responses] == [r.response_id for r in one.responses]
