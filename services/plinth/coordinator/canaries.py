"""Deployments of canaries: whose they are, how busy, and that none outlives its run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from plinth.coordinator.deployments import STAGE
from plinth.shared.errors import NotFound
from plinth.shared.records import DeploymentChange
from plinth.shared.registry import Registry
from plinth.shared.telemetry import get_logger

if TYPE_CHECKING:
    from plinth.coordinator.steps.contract import Tools

_log = get_logger("plinth.coordinator")


async def end_canary(tools: Tools, record: DeploymentChange | None, owner: str) -> bool:
    """Deletes the deployment in `record` if it is of `owner`; whether it was."""
    if record is None or record.deployment is None or record.deployment.owner != owner:
        return False
    try:
        await asyncio.to_thread(tools.deployments.delete, record.name, expected=record.revision)
    except NotFound:
        return False  # somebody else did so meanwhile
    return True


async def sweep(tools: Tools, active: Callable[[], Awaitable[Collection[str]]]) -> None:
    """Takes down canaries whose run is over or unknown: a coordinator, or Redis with all that was
    in it, may have gone before it could. active: ids of the runs that are not."""
    wanted = await asyncio.to_thread(tools.deployments.list)
    canaries = [deployment for deployment in wanted if deployment.canary_of]
    if not canaries:
        return
    runs = await active()  # after the list: a run that ended since has cleaned up, or we do
    for canary in canaries:
        if canary.owner.rsplit(".", 2)[0] in runs:
            continue
        _log.warning("a canary outlived its run", name=canary.name, owner=canary.owner)
        await tools.canaries.close(canary.canary_of, canary.owner)
        record = await asyncio.to_thread(tools.deployments.get, canary.name)
        await end_canary(tools, record, canary.owner)


async def running(registry: Registry, name: str, artifact: str) -> int:
    """Requests at the shards that hold this version under this name."""
    return sum(
        replica.load
        for replica in await registry.replicas(STAGE)
        if any(h.get("model") == name and h.get("artifact") == artifact for h in replica.bindings)
    )
