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
from plinth.shared.registry import Registry, Replica

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


def holds(shard: Replica, wanted: pb.DeploymentRecord) -> bool:
    """Whether a shard is one that `wanted` asks for: of its name and version, and started as it
    says. One of before a change of the rest goes on until its successor is there; a shard of an
    older platform tells no more than name and version."""
    return any(
        held.get("model") == wanted.name
        and held.get("artifact") == wanted.artifact
        and held.get("speculation", wanted.speculation) == wanted.speculation
        and held.get("kv_cache_bytes", wanted.kv_cache_bytes) == wanted.kv_cache_bytes
        for held in shard.bindings
    )


async def ready_shards(registry: Registry, wanted: pb.DeploymentRecord) -> int:
    """Shards in the registry that it asks for."""
    return sum(holds(shard, wanted) for shard in await registry.replicas(STAGE))


async def until_ready(
    registry: Registry, wanted: pb.DeploymentRecord, *, within_s: float
) -> AsyncIterator[int]:
    """Number of ready shards, whenever it changes, until all are. FailedPrecondition when they
    are not in time: what keeps a shard from starting won't go away by itself."""
    deadline = time.monotonic() + within_s
    last = -1
    while True:
        ready = await ready_shards(registry, wanted)
        if ready != last:
            yield ready
            last = ready
        if ready >= wanted.shards:
            return
        if time.monotonic() > deadline:
            raise FailedPrecondition(
                f"{ready} of {wanted.shards} shards of {wanted.name!r} ({wanted.artifact}) were "
                f"ready within {within_s:.0f} s; `plinth logs inference-{wanted.name}` says why",
                reason="DEPLOYMENT_NOT_READY",
            )
        await asyncio.sleep(_POLL_S)
