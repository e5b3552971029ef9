"""Served models: desired state put on the store, and whether the world has followed.

The reconciler makes the world match; this file only writes what is wanted and reads from the
replica registry how far it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from plinth.internal.v1 import deployments_pb2 as pb
from plinth.shared.errors import FailedPrecondition
from plinth.shared.records import DeploymentRecords
from plinth.shared.registry import Registry

STAGE = "inference"
# Replicas announce themselves every couple of seconds.
_POLL_S = 0.5


async def put(records: DeploymentRecords, wanted: pb.DeploymentRecord) -> bool:
    """Writes it unless it stands there already; whether it was written. Compare-and-set, and with
    records `under` a fence also against who comes late (`fencing.admitted`)."""
    before = await asyncio.to_thread(records.get, wanted.name)
    revision = before.revision if before else None
    after = await asyncio.to_thread(records.put, wanted, expected=revision)
    return before is None or before.deployment != after.deployment


async def ready_shards(registry: Registry, name: str, artifact: str) -> int:
    """Shards in the registry that hold this version under this name."""
    return sum(
        any(held.get("model") == name and held.get("artifact") == artifact for held in r.bindings)
        for r in await registry.replicas(STAGE)
    )


async def until_ready(
    registry: Registry, wanted: pb.DeploymentRecord, *, within_s: float
) -> AsyncIterator[int]:
    """Number of ready shards, whenever it changes, until all are. FailedPrecondition when they
    are not in time: what keeps a shard from starting won't go away by itself."""
    deadline = time.monotonic() + within_s
    last = -1
    while True:
        ready = await ready_shards(registry, wanted.name, wanted.artifact)
        if ready != last:
            yield ready
            last = ready
        if ready >= wanted.shards:
            return
        if time.monotonic() > deadline:
            raise FailedPrecondition(
                f"{ready} of {wanted.shards} shards of {wanted.name!r} ({wanted.artifact}) were "
                f"ready within {within_s:.0f} s; `plinth logs inference` says why",
                reason="DEPLOYMENT_NOT_READY",
            )
        await asyncio.sleep(_POLL_S)
