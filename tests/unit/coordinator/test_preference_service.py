"""PreferenceService as its clients see it: messages, pages, filters, and whose a collection is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from plinth.coordinator.collection_uses import CollectionUses
from plinth.coordinator.preferences import listing
from plinth.coordinator.preferences.checks import VALIDATORS
from plinth.coordinator.preferences.messages import task_message
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.service import PreferenceServicer
from plinth.coordinator.preferences.specs import make_task
from plinth.coordinator.runs import RunRecords
from plinth.internal.v1 import run_records_pb2
from plinth.shared.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from plinth.shared.identity import Principal, call_scope
from plinth.shared.preference_names import TASKS
from plinth.shared.store import ArtifactStore
from plinth.v1 import chat_pb2, owner_pb2
from plinth.v1 import preferences_pb2 as pb

SCOPES = frozenset({"preferences"})
OURS = Principal("ours", "key-1", SCOPES)
THEIRS = Principal("theirs", "key-2", SCOPES)
OPERATOR = Principal("operators", "key-3", frozenset({"admin"}))
COLLECTION = "collections/c"
LIVE = "collections/live"


def spec(name: str = "?", **fields: Any) -> pb.PreferenceTaskSpec:
    return pb.PreferenceTaskSpec(
        prompt=[chat_pb2.ChatMessage(role="user", content=f"Ask {name}")],
        responses=[pb.PreferenceResponse(response_id=one, text=f"{name} {one}") for one in "ab"],
        **fields,
    )


class Door:
    """Calls it as the server does: validators first, then the method, as some principal."""

    def __init__(self, redis: Redis) -> None:
        nothing: Any = None
        uses = CollectionUses(RunRecords(redis)).of
        self.servicer = PreferenceServicer(redis, nothing, nothing, nothing, "a token", uses)
        self.principal = OURS

    @contextmanager
    def by(self, principal: Principal) -> Iterator[None]:
        before, self.principal = self.principal, principal
        try:
            yield
        finally:
            self.principal = before

    async def call(self, method: str, **fields: Any) -> Any:
        descriptor = pb.DESCRIPTOR.services_by_name["PreferenceService"].methods_by_name[method]
        request = getattr(pb, descriptor.input_type.name)(**fields)
        if method in VALIDATORS:
            VALIDATORS[method](request)
        with call_scope(principal=self.principal):
            answer = getattr(self.servicer, method)(request, None)
            if descriptor.server_streaming:
                return [one async for one in answer]
            return await answer

    async def add(self, task_id: str, parent: str = COLLECTION, **fields: Any) -> pb.PreferenceTask:
        task = pb.PreferenceTask(spec=spec(task_id, **fields))
        made = await self.call("CreatePreferenceTask", parent=parent, task_id=task_id, task=task)
        return made.task

    async def lease(self, parent: str = COLLECTION, **fields: Any) -> pb.PreferenceLease:
        return (await self.call("LeasePreferenceTask", parent=parent, **fields)).lease

    async def judge(self, task: str, fence: int = 0, **fields: Any) -> pb.Judgement:
        fields = {"ranking": tiers([["a"], ["b"]]), **fields}
        judgement = pb.Judgement(spec=pb.JudgementSpec(**fields))
        made = await self.call("CreateJudgement", parent=task, judgement=judgement, fence=fence)
        return made.judgement

    async def pages(self, method: str, field: str, **fields: Any) -> list[Any]:
        found: list[Any] = []
        token = ""
        while True:
            answer = await self.call(method, page_token=token, **fields)
            found += getattr(answer, field)
            if not (token := answer.next_page_token):
                return found


@pytest.fixture
def door(redis_client: Redis) -> Door:
    return Door(redis_client)


# -- messages ------------------------------------------------------------------------------------


def test_what_was_asked_for_is_told_as_it_was_asked() -> None:
    asked = spec(
        "t",
        wanted_judgement_count=3,
        gold=tiers([["a"], ["b"]]),
        origin=pb.PREFERENCE_TASK_ORIGIN_LIVE,
        answered_request_id="r-1",
    )
    owner = owner_pb2.Owner(tenant="ours", key_id="key-1")
    told = task_message(make_task(asked, "c", "task.spec", task_id="t", owner=owner))
    assert told.spec == asked
    assert (told.name, told.owner) == ("collections/c/tasks/t", owner)
    assert told.HasField("create_time")


@pytest.mark.parametrize("state", pb.PreferenceTaskState.values()[1:])
def test_sampled_responses_are_told_apart_from_given_ones(
    state: pb.PreferenceTaskState.ValueType,
) -> None:
    samples = [pb.SampleSpec(model="chat"), pb.SampleSpec(model="other", count=2)]
    record = make_task(spec("t", samples=samples), "c", "task.spec", task_id="t")
    record.state = state
    made = state not in (pb.PREFERENCE_TASK_STATE_SAMPLING, pb.PREFERENCE_TASK_STATE_FAILED)
    for number in range(3 if made else 0):
        record.responses.add(response_id=f"s{number}", text=f"sampled {number}")
    told = task_message(record)
    assert [one.response_id for one in told.spec.responses] == ["a", "b"]
    sampled = [one.response_id for one in told.status.sampled_responses]
    assert sampled == (["s0", "s1", "s2"] if made else [])
    bare = task_message(record, texts=False)
    assert not bare.spec.prompt
    assert not any(one.text for one in (*bare.spec.responses, *bare.status.sampled_responses))


# -- tasks and judgements ------------------------------------------------------------------------


async def test_from_a_task_to_a_report(door: Door) -> None:
    made = await door.add("t", wanted_judgement_count=2)
    assert (made.name, made.owner.key_id) == (f"{COLLECTION}/tasks/t", "key-1")
    assert await door.add("t", wanted_judgement_count=2) == made  # the same again
    held = await door.lease(annotator="ann", lease_duration=Duration(seconds=60), request_id="1")
    assert held == await door.lease(annotator="ann", request_id="1")
    assert held.task == made.name
    assert all(not one.model for one in held.responses)
    human = await door.judge(held.task, held.fence, annotator="ann", reason="short")
    assert human.name == f"{held.task}/judgements/1"
    assert list(human.spec.shown) == [one.response_id for one in held.responses]
    assert human.spec.source == pb.JUDGEMENT_SOURCE_HUMAN
    rule = await door.judge(held.task, annotator="length", source=pb.JUDGEMENT_SOURCE_RULE)
    assert (await door.call("GetJudgement", name=rule.name)).judgement == rule
    for parent in (made.name, f"{COLLECTION}/tasks/-"):
        assert await door.pages("ListJudgements", "judgements", parent=parent) == [human, rule]
    status = (await door.call("GetPreferenceTask", name=made.name)).task.status
    assert (status.state, status.human_judgement_count) == (pb.PREFERENCE_TASK_STATE_OPEN, 1)
    report = (await door.call("GetPreferenceReport", name=f"{COLLECTION}/report")).report
    assert (report.task_count, report.revision) == (1, 2)
    closed = (await door.call("ClosePreferenceTask", name=made.name)).task
    assert closed.status.state == pb.PREFERENCE_TASK_STATE_DONE
    with pytest.raises(FailedPrecondition) as caught:
        await door.call("DeletePreferenceTask", name=made.name)
    assert caught.value.reason == "TASK_JUDGED"
    with pytest.raises(NotFound):
        await door.call("GetJudgement", name=f"{COLLECTION}/tasks/other/judgements/1")


async def test_a_call_that_is_sent_again_adds_nothing(door: Door) -> None:
    one = pb.CreatePreferenceTaskRequest(task=pb.PreferenceTask(spec=spec("one")))
    two = pb.CreatePreferenceTaskRequest(task=pb.PreferenceTask(spec=spec("two")))
    batch = {"parent": COLLECTION, "requests": [one, two, one]}
    first = await door.call("BatchCreatePreferenceTasks", **batch, request_id="r")
    assert len({task.name for task in first.tasks}) == 3
    assert await door.call("BatchCreatePreferenceTasks", **batch, request_id="r") == first
    single = {"parent": COLLECTION, "task": one.task}
    again = [await door.call("CreatePreferenceTask", **single, request_id="r2") for _ in range(2)]
    assert again[0] == again[1]
    await door.call("CreatePreferenceTask", **single)  # each call adds one
    await door.call("CreatePreferenceTask", **single)
    assert len(await door.pages("ListPreferenceTasks", "tasks", parent=COLLECTION)) == 6
    with pytest.raises(AlreadyExists):  # another call under the same id
        await door.call("CreatePreferenceTask", parent=COLLECTION, task=two.task, request_id="r2")
    with pytest.raises(InvalidArgument, match="request_id 'a b'"):
        await door.call("CreatePreferenceTask", **single, request_id="a b")


async def test_a_collection_goes_with_its_tasks_when_that_is_said(door: Door) -> None:
    with pytest.raises(NotFound):
        await door.call("GetPreferenceCollection", name=COLLECTION)
    await door.add("t")
    found = (await door.call("GetPreferenceCollection", name=COLLECTION)).collection
    assert (found.owner.tenant, found.status.open_task_count) == ("ours", 1)
    assert found.HasField("create_time")
    with pytest.raises(FailedPrecondition, match="has 1 tasks: set force"):
        await door.call("DeletePreferenceCollection", name=COLLECTION)
    gone = await door.call("DeletePreferenceCollection", name=COLLECTION, force=True)
    assert gone.task_count == 1
    await door.add("t")
    await door.call("DeletePreferenceTask", name=f"{COLLECTION}/tasks/t")
    await door.call("DeletePreferenceCollection", name=COLLECTION)


async def test_a_collection_stays_while_a_run_reads_it(door: Door, redis_client: Redis) -> None:
    await door.add("t")
    pipeline = "name: x\nsteps: {pairs: {kind: preferences, collection: c}}"
    run = run_records_pb2.RunRecord(run_id="r1", pipeline_yaml=pipeline)
    await RunRecords(redis_client).submit(run)
    with pytest.raises(FailedPrecondition, match="is read by run r1") as caught:
        await door.call("DeletePreferenceCollection", name=COLLECTION, force=True)
    assert caught.value.reason == "COLLECTION_IN_USE"
    await door.add("t", parent="collections/d")
    await door.call("DeletePreferenceCollection", name="collections/d", force=True)


async def test_a_batch_names_what_is_wrong(door: Door) -> None:
    good = pb.CreatePreferenceTaskRequest(task_id="t", task=pb.PreferenceTask(spec=spec()))
    imported = spec(origin=pb.PREFERENCE_TASK_ORIGIN_IMPORT)
    for wrong, field in (
        (pb.CreatePreferenceTaskRequest(), "requests.1.task.spec.prompt"),
        (pb.CreatePreferenceTaskRequest(task_id="a/b", task=good.task), "requests.1.task_id"),
        (pb.CreatePreferenceTaskRequest(parent=LIVE, task=good.task), "requests.1.parent"),
        (
            pb.CreatePreferenceTaskRequest(task=pb.PreferenceTask(spec=imported)),
            "requests.1.task.spec.origin",
        ),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await door.call("BatchCreatePreferenceTasks", parent=COLLECTION, requests=[good, wrong])
        assert caught.value.field == field
    assert not await door.pages("ListPreferenceTasks", "tasks", parent=COLLECTION)


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("GetPreferenceTask", {"name": "t"}, "name"),
        ("GetPreferenceTask", {"name": "collections/c/tasks/a:b"}, "name"),
        ("ListPreferenceTasks", {"parent": "c"}, "parent"),
        ("ListJudgements", {"parent": COLLECTION}, "parent"),
        ("GetJudgement", {"name": f"{COLLECTION}/tasks/t/judgements/0"}, "name"),
        ("GetJudgement", {"name": f"{COLLECTION}/tasks/t/judgements/x"}, "name"),
        ("GetPreferenceReport", {"name": COLLECTION}, "name"),
        ("CreateJudgement", {"parent": f"{COLLECTION}/tasks/t"}, "fence"),
        ("LeasePreferenceTask", {"parent": COLLECTION, "task": f"{LIVE}/tasks/t"}, "task"),
        (
            "LeasePreferenceTask",
            {"parent": COLLECTION, "lease_duration": Duration(seconds=9)},
            "lease_duration",
        ),
        (
            "LeasePreferenceTask",
            {"parent": COLLECTION, "lease_duration": Duration(seconds=-(2**40))},
            "lease_duration",
        ),
        (
            "RequestModelJudgements",
            {"parent": COLLECTION, "model": "m", "max_task_count": 1001},
            "max_task_count",
        ),
        ("LeasePreferenceTask", {"parent": COLLECTION, "request_id": "a/b"}, "request_id"),
        ("PublishPairs", {"parent": COLLECTION, "artifact_id": "A b"}, "artifact_id"),
    ],
)
async def test_a_wrong_request_is_told_its_field(
    door: Door, method: str, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await door.call(method, **fields)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


# -- pages ---------------------------------------------------------------------------------------


async def test_five_thousand_tasks_come_once_while_others_come_and_go(door: Door) -> None:
    records = door.servicer._records("c")
    for number in range(5000):
        task = make_task(spec(f"{number}"), "c", "task.spec", task_id=f"t{number}")
        await records.create(task)
    seen: list[str] = []
    deleted: set[str] = set()
    token = ""
    while True:
        answer = await door.call(
            "ListPreferenceTasks", parent=COLLECTION, page_size=10_000, page_token=token
        )
        assert len(answer.tasks) <= 200
        seen += [TASKS.id(task.name) for task in answer.tasks]
        await door.add(f"new-{len(seen)}")
        last = int(seen[-1].removeprefix("t"))
        if (
            last > 1
        ):  # the one that the next page begins behind, and the one that it would begin with
            for gone in (last, last - 1):
                await door.call("DeletePreferenceTask", name=TASKS.name("c", f"t{gone}"))
            deleted.add(f"t{last - 1}")
        if not (token := answer.next_page_token):
            break
    assert len(seen) == len(set(seen)) > 4900
    assert set(seen) == {f"t{number}" for number in range(5000)} - deleted


async def test_a_filter_is_answered_in_short_pages_of_a_long_collection(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_LOOKED", 40)
    for number in range(100):
        await door.add(f"t{number}", wanted_judgement_count=number % 50 and 1)
    asked = {"parent": COLLECTION, "filter": "state = DONE"}
    first = await door.call("ListPreferenceTasks", **asked)
    assert (len(first.tasks), bool(first.next_page_token), first.total_size) == (0, True, 100)
    found = await door.pages("ListPreferenceTasks", "tasks", **asked)
    assert [task.name.rpartition("/")[2] for task in found] == ["t50", "t0"]
    found = await door.pages(
        "ListPreferenceTasks",
        "tasks",
        parent=COLLECTION,
        filter='task_id = "t9*" AND origin = CLIENT AND create_time < 2000-01-01T00:00:00Z',
    )
    assert not found
    with pytest.raises(InvalidArgument, match="SAMPLING, OPEN, LEASED, DONE, FAILED"):
        await door.call("ListPreferenceTasks", parent=COLLECTION, filter="state = done")


async def test_a_page_of_large_tasks_is_cut_by_its_size(door: Door) -> None:
    large = [
        pb.PreferenceResponse(response_id=str(n), text=f"{n}" + "x" * 60_000) for n in range(8)
    ]
    for number in range(12):
        task = pb.PreferenceTask(spec=spec(f"t{number}"))
        del task.spec.responses[:]
        task.spec.responses.extend(large)
        await door.call("CreatePreferenceTask", parent=COLLECTION, task_id=f"t{number}", task=task)
    full = {"parent": COLLECTION, "view": pb.PREFERENCE_TASK_VIEW_FULL}
    first = await door.call("ListPreferenceTasks", **full)
    assert len(first.tasks) < 12
    assert first.ByteSize() < listing.MAX_BYTES + 9 * 65_536
    assert len(await door.pages("ListPreferenceTasks", "tasks", **full)) == 12
    assert len((await door.call("ListPreferenceTasks", parent=COLLECTION)).tasks) == 12


async def test_judgements_in_pages_and_by_filter(door: Door) -> None:
    for name in ("t", "u"):
        task = (await door.add(name, wanted_judgement_count=0)).name
        for number in range(15):
            await door.judge(
                task, annotator=f"rule-{number}", source=pb.JUDGEMENT_SOURCE_RULE, ranking=[],
                all_bad=True,
            )  # fmt: skip
    for parent, count in ((f"{COLLECTION}/tasks/-", 30), (f"{COLLECTION}/tasks/u", 15)):
        found = await door.pages("ListJudgements", "judgements", parent=parent, page_size=4)
        assert [one.revision for one in found] == list(range(31 - count, 31))
    found = await door.pages(
        "ListJudgements",
        "judgements",
        parent=f"{COLLECTION}/tasks/-",
        filter='annotator = "rule-3" AND source = RULE AND all_bad = true AND revision > 10',
    )
    assert [one.name for one in found] == [f"{COLLECTION}/tasks/u/judgements/19"]


async def test_collections_in_pages(door: Door) -> None:
    for number in range(7):
        await door.add("t", parent=f"collections/c{number}")
    found = await door.pages("ListPreferenceCollections", "collections", page_size=3)
    assert [one.name for one in found] == [f"collections/c{number}" for number in range(7)]


async def test_a_token_of_another_list_is_refused(door: Door) -> None:
    for number in range(3):
        await door.add(f"t{number}")
        await door.add(f"t{number}", parent="collections/d")
    answer = await door.call("ListPreferenceTasks", parent=COLLECTION, page_size=1)
    for fields in (
        {"parent": "collections/d", "page_token": answer.next_page_token},
        {"parent": COLLECTION, "page_token": answer.next_page_token, "filter": "state = OPEN"},
        {"parent": COLLECTION, "page_token": "1"},
    ):
        with pytest.raises(InvalidArgument) as caught:
            await door.call("ListPreferenceTasks", **fields)
        assert caught.value.reason == "PAGE_TOKEN"


# -- owners --------------------------------------------------------------------------------------


async def test_another_tenant_reads_and_changes_nothing(door: Door) -> None:
    task = (await door.add("t", wanted_judgement_count=5)).name
    held = await door.lease(annotator="ann")
    fence, line = held.fence, b'{"prompt": "p", "chosen": "a", "rejected": "b"}'
    rule = {"annotator": "length", "source": pb.JUDGEMENT_SOURCE_RULE}
    judged = pb.Judgement(spec=pb.JudgementSpec(ranking=tiers([["a"], ["b"]]), **rule))
    reads = {
        "GetPreferenceCollection": {"name": COLLECTION},
        "ListPreferenceCollections": {},
        "GetPreferenceTask": {"name": task},
        "ListPreferenceTasks": {"parent": COLLECTION},
        "ListJudgements": {"parent": task},
        "GetPreferenceReport": {"name": f"{COLLECTION}/report"},
        "ExportPairs": {"parent": COLLECTION},
    }
    changes = {
        "CreatePreferenceTask": {"parent": COLLECTION, "task": pb.PreferenceTask(spec=spec())},
        "BatchCreatePreferenceTasks": {
            "parent": COLLECTION,
            "requests": [pb.CreatePreferenceTaskRequest(task=pb.PreferenceTask(spec=spec()))],
        },
        "LeasePreferenceTask": {"parent": COLLECTION},
        "RenewPreferenceLease": {"name": task, "annotator": "ann", "fence": fence},
        "CreateJudgement": {"parent": task, "judgement": judged},
        "RequestModelJudgements": {"parent": COLLECTION, "model": "chat"},
        "ImportPairs": {"parent": COLLECTION, "jsonl": line, "source": pb.JUDGEMENT_SOURCE_RULE},
        "ReleasePreferenceLease": {"name": task, "annotator": "ann", "fence": fence},
        "ClosePreferenceTask": {"name": task},
        "DeletePreferenceTask": {"name": task},
        "DeletePreferenceCollection": {"name": COLLECTION, "force": True},
    }
    methods = pb.DESCRIPTOR.services_by_name["PreferenceService"].methods_by_name
    apart = {"GetJudgement", "PublishPairs"}  # which this collection has nothing for
    assert {*reads, *changes, *apart} == set(methods)
    with door.by(THEIRS):
        for method, fields in reads.items():
            await door.call(method, **fields)
        for method, fields in changes.items():
            with pytest.raises(PermissionDenied) as caught:
                await door.call(method, **fields)
            assert caught.value.reason == "OTHER_TENANT", method
    with door.by(OPERATOR):
        await door.call("CreateJudgement", **changes["CreateJudgement"])
    await door.judge(task, fence, annotator="ann")


async def test_nobody_publishes_the_next_version_of_anothers_artifact(
    door: Door, tmp_path: Path
) -> None:
    door.servicer._store = ArtifactStore((tmp_path / "store").as_uri())
    for number in range(4):
        task = (await door.add(f"t{number}")).name
        await door.judge(task, annotator="length", source=pb.JUDGEMENT_SOURCE_RULE)
    asked: dict[str, Any] = {"parent": COLLECTION, "artifact_id": "people"}
    made = await door.call("PublishPairs", **asked, min_pair_count=4)
    assert made.artifact.name == "artifacts/people@1"
    with pytest.raises(FailedPrecondition) as few:
        await door.call("PublishPairs", **asked, min_pair_count=5)
    assert (few.value.reason, few.value.field) == ("TOO_FEW_PAIRS", "min_pair_count")
    with door.by(THEIRS):
        with pytest.raises(PermissionDenied) as caught:
            await door.call("PublishPairs", **asked)
        assert caught.value.reason == "OTHER_TENANT"
        theirs = await door.call("PublishPairs", parent=COLLECTION, artifact_id="theirs")
    assert theirs.artifact.owner.tenant == THEIRS.tenant


async def test_live_answers_are_each_tenants_own(door: Door) -> None:
    origin = pb.PREFERENCE_TASK_ORIGIN_LIVE
    ours = (await door.add("ours", parent=LIVE, origin=origin)).name
    with door.by(THEIRS):
        theirs = (await door.add("theirs", parent=LIVE, origin=origin)).name
        held = await door.lease(parent=LIVE)  # the oldest is not theirs
        assert held.task == theirs
        with pytest.raises(NotFound):
            await door.lease(parent=LIVE)
        for method, fields in (
            ("LeasePreferenceTask", {"parent": LIVE, "task": ours}),
            ("ClosePreferenceTask", {"name": ours}),
            ("DeletePreferenceTask", {"name": ours}),
        ):
            with pytest.raises(PermissionDenied) as caught:
                await door.call(method, **fields)
            assert caught.value.reason == "OTHER_TENANT"
        with pytest.raises(PermissionDenied) as caught:
            await door.call("DeletePreferenceCollection", name=LIVE, force=True)
        assert caught.value.reason == "SCOPE_MISSING"
        await door.judge(theirs, held.fence)
    assert (await door.lease(parent=LIVE, annotator="ann")).task == ours
    with door.by(OPERATOR):
        gone = await door.call("DeletePreferenceCollection", name=LIVE, force=True)
    assert gone.task_count == 2
