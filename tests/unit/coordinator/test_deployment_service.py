"""Deployments over the API: created once, updated by mask and etag, owners, status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from redis.asyncio import Redis

from plinth.coordinator import deployment_messages as messages
from plinth.coordinator.deployment_service import DeploymentServicer
from plinth.coordinator.steps.contract import Tools
from plinth.internal.v1 import deployments_pb2 as internal
from plinth.shared.api.paging import Pages
from plinth.shared.canary import Canaries
from plinth.shared.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    PlinthError,
)
from plinth.shared.identity import Principal, call_scope
from plinth.shared.records import DeploymentRecords
from plinth.shared.registry import Registry
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactStore
from plinth.v1 import deployments_pb2 as pb

ANNA = Principal("anna", "key-a", frozenset({"deployments"}))
BEN = Principal("ben", "key-b", frozenset({"deployments"}))
ADMIN = Principal("ops", "key-o", frozenset({"admin"}))


class World:
    def __init__(self, store: ArtifactStore, redis: Redis) -> None:
        nothing: Any = None
        self.records, self.registry = DeploymentRecords(store), Registry(redis)
        tools = Tools(
            store, self.records, self.registry, nothing, redis, Canaries(redis), SourceRoots(())
        )
        self._servicer: Any = DeploymentServicer(tools, Pages("a secret"))

    async def __call__(self, method: str, request: Any, principal: Principal = ANNA) -> Any:
        with call_scope(principal=principal):
            return await getattr(self._servicer, method)(request, None)

    async def create(self, name: str = "chat", **spec: Any) -> pb.Deployment:
        given = pb.Deployment(spec=pb.DeploymentSpec(**{"artifact": "m:prod"} | spec))
        request = pb.CreateDeploymentRequest(deployment_id=name, deployment=given)
        made: pb.Deployment = (await self("CreateDeployment", request)).deployment
        return made

    async def update(
        self, *paths: str, etag: str = "", by: Principal = ANNA, **more: Any
    ) -> pb.Deployment:
        missing = more.pop("allow_missing", False)
        given = pb.Deployment(name="deployments/chat", spec=pb.DeploymentSpec(**more), etag=etag)
        request = pb.UpdateDeploymentRequest(
            deployment=given, update_mask=FieldMask(paths=paths), allow_missing=missing
        )
        made: pb.Deployment = (await self("UpdateDeployment", request, by)).deployment
        return made

    async def get(self, name: str = "chat") -> pb.Deployment:
        request = pb.GetDeploymentRequest(name=f"deployments/{name}")
        found: pb.Deployment = (await self("GetDeployment", request, BEN)).deployment
        return found


@pytest.fixture
def world(store: ArtifactStore, redis_client: Redis, tmp_path: Path) -> World:
    (tmp_path / "a").write_text("1")
    for digest in "ab":
        store.publish("m", "model", tmp_path / "a", input_digest=digest)
    store.set_alias("m", "prod", 1)
    return World(store, redis_client)


async def test_created_once(world: World) -> None:
    made = await world.create(shards=2)
    assert (made.name, made.spec.artifact, made.spec.shards) == ("deployments/chat", "m@1", 2)
    assert (made.owner.tenant, made.owner.key_id) == ("anna", "key-a")
    assert await world.create(shards=2) == made, "sent again"
    with pytest.raises(AlreadyExists) as caught:
        await world.create(shards=3)
    assert caught.value.reason == "DEPLOYMENT_EXISTS"
    assert await world.get() == made
    for bad in ({"shards": 65}, {"artifact": ""}, {"artifact": "nobody"}, {"cpus_per_shard": -1}):
        with pytest.raises((InvalidArgument, NotFound)):
            await world.create("other", **bad)
    with pytest.raises(InvalidArgument):
        await world.create("Not A Name")


async def test_updates_say_what_and_from_what(world: World) -> None:
    made = await world.create(shards=2, kv_cache_bytes=1 << 20)
    more = await world.update("spec.shards", shards=3, artifact="m@2")
    assert (more.spec.shards, more.spec.artifact, more.spec.kv_cache_bytes) == (3, "m@1", 1 << 20)
    assert more.etag != made.etag
    with pytest.raises(Aborted) as caught:
        await world.update("spec.shards", shards=4, etag=made.etag)
    assert caught.value.metadata["etag"] == more.etag
    named = await world.update(artifact="m@2", etag=more.etag)
    assert (named.spec.artifact, named.spec.shards) == ("m@2", 3), "without a mask: what is set"
    whole = await world.update("spec", artifact="m@1")
    assert whole.spec == pb.DeploymentSpec(artifact="m@1", shards=1), "with defaults for the rest"
    for path in ("status.ready_shards", "spec.nothing", "owner", "name"):
        with pytest.raises(InvalidArgument, match="update_mask"):
            await world.update(path, shards=1)
    assert whole.owner == made.owner


async def test_an_update_may_make_it(world: World) -> None:
    with pytest.raises(NotFound):
        await world.update(artifact="m")
    made = await world.update(artifact="m", allow_missing=True)
    assert (made.spec.artifact, made.owner.tenant) == ("m@2", "anna")


async def test_others_read_and_do_not_change(world: World) -> None:
    made = await world.create()
    delete = pb.DeleteDeploymentRequest(name=made.name)
    with pytest.raises(PermissionDenied):
        await world.update(shards=2, by=BEN)
    with pytest.raises(PermissionDenied):
        await world("DeleteDeployment", delete, BEN)
    changed = await world.update(shards=2, by=ADMIN)
    assert changed.owner.tenant == "anna", "it stays whose it is"
    with pytest.raises(Aborted):
        delete.etag = made.etag
        await world("DeleteDeployment", delete)
    delete.etag = changed.etag
    await world("DeleteDeployment", delete)
    for method, request in (
        ("DeleteDeployment", delete),
        ("GetDeployment", pb.GetDeploymentRequest(name=made.name)),
    ):
        with pytest.raises(NotFound):
            await world(method, request)
    assert (await world.create(shards=5)).spec.shards == 5, "and again"


async def test_pages(world: World) -> None:
    for name in ("b", "d", "f"):
        await world.create(name)
    request, found = pb.ListDeploymentsRequest(page_size=1), list[str]()
    for added in ("a", "e", "g"):
        page = await world("ListDeployments", request)
        found += [one.name for one in page.deployments]
        request.page_token = page.next_page_token
        await world.create(added)
    assert found == ["deployments/b", "deployments/d", "deployments/e"]


async def test_status_is_what_is_there(world: World) -> None:
    assert (await world.create(shards=2)).status.state == pb.DEPLOYMENT_STATE_UNSPECIFIED
    held = json.dumps([{"model": "chat", "artifact": "m@1"}])
    await world.registry.announce("inference", "s1", "a:1", {"bindings": held})
    told = {"name": "chat", "artifact": "m@1", "shards": 2, "state": "failed", "detail": "no room"}
    await world.registry.announce("reconciler", "r", "a:2", {"models": json.dumps([told])})
    status = (await world.get()).status
    assert (status.state, status.detail) == (pb.DEPLOYMENT_STATE_FAILED, "no room")
    assert (status.ready_shards, status.wanted_shards) == (1, 2)
    await world.update(artifact="m@2")
    status = (await world.get()).status
    assert (status.state, status.ready_shards) == (pb.DEPLOYMENT_STATE_STARTING, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"speculation": {"mode": pb.SPECULATION_MODE_DRAFT, "draft": "m@2"}},
        {"kv_cache_bytes": 1 << 20},
    ],
)
async def test_a_shard_of_before_a_change_is_not_ready_for_it(
    world: World, change: dict[str, Any]
) -> None:
    """The one that it asks for may never come up; a step that serves it would succeed at once."""
    await world.create()
    held = {"model": "chat", "artifact": "m@1", "speculation": "", "kv_cache_bytes": 0}
    await world.registry.announce("inference", "s1", "a:1", {"bindings": json.dumps([held])})
    assert (await world.get()).status.ready_shards == 1
    await world.update(**change)
    assert (await world.get()).status.ready_shards == 0
    held |= {"speculation": "draft:m@2"} if "speculation" in change else change
    await world.registry.announce("inference", "s1", "a:1", {"bindings": json.dumps([held])})
    assert (await world.get()).status.ready_shards == 1


async def test_a_canary_is_seen_and_left_alone(world: World) -> None:
    await world.create()
    world.records.put(
        internal.DeploymentRecord(
            name="chat.canary",
            artifact="m@2",
            canary_of="chat",
            owner="run.trial.1",
            stable="m@1",
            traffic_share=0.25,
        )
    )
    canary = (await world.get("chat.canary")).status.canary
    assert (canary.deployment, canary.stable) == ("deployments/chat", "m@1")
    assert (canary.traffic_share, canary.step) == (0.25, "run.trial.1")
    with pytest.raises(FailedPrecondition, match="takes it down"):
        await world(
            "DeleteDeployment", pb.DeleteDeploymentRequest(name="deployments/chat.canary"), ADMIN
        )
    with pytest.raises(InvalidArgument, match="are for canaries"):
        await world.create("other.canary")


@pytest.mark.parametrize("said", ["", "off", "lookup", "draft:small@3"])
def test_a_specification_there_and_back(said: str) -> None:
    record = internal.DeploymentRecord(
        name="chat",
        artifact="m@1",
        shards=2,
        max_shards=4,
        cpus_per_shard=0.5,
        gpus_per_shard=1,
        kv_cache_bytes=1 << 33,
        speculation=said,
    )
    spec = messages.spec_of(record)
    filled = {field.name for field, _ in spec.ListFields()}
    wanted = set(spec.DESCRIPTOR.fields_by_name) - ({"speculation"} if not said else set())
    assert filled == wanted, "each field is told"
    assert messages.record_of("chat", spec) == record


def test_a_draft_is_named_where_it_is_used() -> None:
    for wrong in (
        pb.SpeculationSpec(mode=pb.SPECULATION_MODE_DRAFT),
        pb.SpeculationSpec(mode=pb.SPECULATION_MODE_LOOKUP, draft="small"),
        pb.SpeculationSpec(draft="small"),
    ):
        with pytest.raises(InvalidArgument, match="name a model"):
            messages.record_of("chat", pb.DeploymentSpec(speculation=wrong))


async def test_filters(world: World) -> None:
    for name, artifact in (("chat", "m@1"), ("code", "m@2")):
        await world.create(name, artifact=artifact)

    async def listed(filter: str) -> list[str]:
        page = await world("ListDeployments", pb.ListDeploymentsRequest(filter=filter))
        return [one.name for one in page.deployments]

    assert await listed("") == ["deployments/chat", "deployments/code"]
    for asked in ("artifact = m@2", 'name = "*/code"', "owner.tenant = ben", "state = READY"):
        wanted = ["deployments/code"] if asked == "artifact = m@2" else []
        assert await listed(asked) == wanted, asked
    assert await listed('canary.deployment = "" AND owner.tenant = anna') == await listed("")
    for wrong in ("state = ready", "shards = 1", "state < READY"):
        with pytest.raises(InvalidArgument, match="filter"):
            await listed(wrong)


async def test_a_damaged_record_hides_no_other(world: World, store: ArtifactStore) -> None:
    for name in ("a", "b", "c"):
        await world.create(name)
    record = store.storage.local("deployments/b/00000001.json")
    assert record is not None
    record.write_bytes(b"{")
    world.records._logs.clear()  # as in a process that has not read it
    page = await world("ListDeployments", pb.ListDeploymentsRequest())
    assert [one.name for one in page.deployments] == ["deployments/a", "deployments/c"]
    assert list(page.unreachable) == ["deployments/b"]
    with pytest.raises(DataLoss):
        await world.get("b")
    damaged: list[str] = []
    assert [one.name for one in world.records.list(damaged.append)] == ["a", "c"]
    assert damaged == ["b"]


async def test_what_was_seen_and_is_gone_is_not_made_anew(world: World) -> None:
    seen = await world.create()
    await world("DeleteDeployment", pb.DeleteDeploymentRequest(name=seen.name))
    with pytest.raises(Aborted) as caught:
        await world.update("spec", etag=seen.etag, artifact="m@2", allow_missing=True)
    assert caught.value.reason == "ETAG_MISMATCH"
    assert (await world.update("spec", artifact="m@2", allow_missing=True)).spec.artifact == "m@2"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"artifact": "gone"}, "artifact"),
        ({"artifact": ""}, "artifact"),
        ({"artifact": "m@0"}, "artifact"),
        (
            {"speculation": {"mode": pb.SPECULATION_MODE_DRAFT, "draft": "gone"}},
            "speculation.draft",
        ),
    ],
)
async def test_what_is_referred_to_is_there(world: World, spec: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidArgument, NotFound)) as caught:
        await world.create(**spec)
    assert caught.value.field == f"deployment.spec.{field}"


async def test_a_mask_is_not_endless(world: World) -> None:
    await world.create()
    await world.update(*["spec"] * 100_000, artifact="m@2")
    with pytest.raises(InvalidArgument, match="of at most 100") as caught:
        await world.update(*(f"spec.x{n}" for n in range(1000)))
    assert caught.value.field == "update_mask"


async def test_nobody_judges_a_revision_of_another_tenant(world: World) -> None:
    await world.create()
    request = pb.ReportOutcomeRequest(name="deployments/chat", revision="m@1", good=False)
    runs = frozenset({"runs"})
    with pytest.raises(PermissionDenied) as caught:
        await world("ReportOutcome", request, Principal("ben", "key-b", runs))
    assert caught.value.reason == "OTHER_TENANT"
    with pytest.raises(PlinthError) as told:  # hers it may be; only, there is no canary
        await world("ReportOutcome", request, Principal("anna", "key-a", runs))
    assert told.value.reason != "OTHER_TENANT"
