"""A canary's trial that is taken up again, on a real store and Redis."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.coordinator.steps import trial
from plinth.coordinator.steps.canary import CanarySpec, CanaryStep
from plinth.coordinator.steps.contract import Tools, Work
from plinth.internal.v1 import deployments_pb2 as pb
from plinth.shared import canary
from plinth.shared.canary import Canaries
from plinth.shared.errors import FailedPrecondition
from plinth.shared.records import DeploymentRecords
from plinth.shared.registry import Registry
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactStore


@pytest.fixture
async def tools(redis_client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Both revisions are on the store, and both have an idle shard."""
    monkeypatch.setattr(canary, "ROUTE_S", 10 * PATIENCE_S)
    monkeypatch.setattr(trial, "_IDLE_S", 0.0)
    store = ArtifactStore((tmp_path / "store").as_uri())
    for version in ("1", "2"):
        (tmp_path / version).write_text(version)
        await asyncio.to_thread(store.publish, "m", "model", tmp_path / version)
    deployments = DeploymentRecords(store)
    await asyncio.to_thread(
        deployments.put, pb.DeploymentRecord(name="m", artifact="m@1", shards=1)
    )
    registry = Registry(redis_client)
    held = [{"model": "m", "artifact": "m@1"}, {"model": "m.canary", "artifact": "m@2"}]
    await registry.announce("inference", "a", "a:1", {"bindings": json.dumps(held)})
    nothing: Any = None
    return Tools(
        store, deployments, registry, nothing, nothing, Canaries(redis_client), SourceRoots(())
    )


async def events(tools: Tools, **fields: Any) -> list[Any]:
    spec = CanarySpec(kind="canary", model="m", name="m", **fields)
    model = await asyncio.to_thread(tools.store.get, "m@2")
    work = Work("r", "s", spec, {"model": model}, "sha256:0", "m")
    return [event async for event in CanaryStep().execute(work, tools)]


async def test_one_that_was_rolled_back_is_for_the_reason_that_was_decided_by(
    tools: Tools,
) -> None:
    """Its coordinator was killed between closing the route and ending the step; a look at the
    counts now may say that it is to be waited for."""
    with pytest.raises(FailedPrecondition) as first:
        await events(tools, seconds=0.001)
    assert first.value.reason == "CANARY_UNDECIDED"
    for seconds in (0.001, 3600):
        with pytest.raises(FailedPrecondition) as again:
            await events(tools, seconds=seconds)
        assert again.value.reason == "CANARY_UNDECIDED"
        said = again.value.message.removeprefix("m@2 was rolled back: ")
        assert said.startswith("undecided after 0 requests of the canary in ")
        assert first.value.message.endswith(said)


async def test_one_that_was_ended_before_it_was_decided_says_so(tools: Tools) -> None:
    await tools.canaries.open("m", "r.s.0", stable="m@1", canary="m@2", share=0.1)
    await tools.canaries.close("m", "r.s.0")
    with pytest.raises(FailedPrecondition, match="ended before anything was decided") as caught:
        await events(tools)
    assert caught.value.reason == "CANARY_ENDED"
