"""What an operator wants to know of all stages, read from Redis: who is there and how busy, what
waits, and whether Redis still takes writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from plinth.shared import redis_keys
from plinth.shared.api import enums, times
from plinth.shared.canary import Canaries
from plinth.shared.canary_counts import Tally
from plinth.shared.connection import redis_errors
from plinth.shared.errors import PlinthError
from plinth.shared.queue import Queue, QueueInfo, queue_names
from plinth.shared.registry import STAGES, Registry, Replica
from plinth.v1 import deployments_pb2
from plinth.v1 import operations_pb2 as pb

_PROBE, _PROBE_MS = "write-probe", 1000  # a lease that nobody holds
_TAIL = 0.95


class PlatformStatus:
    """Each method asks Redis anew and raises Unavailable while it is away. The gateway answers
    GetStatus by it, and the stack on this machine `plinth status`."""

    def __init__(self, redis: Redis, registry: Registry, canaries: Canaries) -> None:
        self._redis = redis
        self._registry = registry
        self._canaries = canaries

    async def read(self) -> pb.GetStatusResponse:
        """All of it."""
        status = await self.replicas_and_models()
        return pb.GetStatusResponse(
            replicas=status.replicas,
            models=status.models,
            queues=await self.queues(),
            canaries=await self.canaries(status.models),
            redis_error=await self.write_error(),
        )

    async def replicas_and_models(self) -> pb.GetStatusResponse:
        """Replicas by stage, and models as the reconciler announces them."""
        replicas = [r for stage in STAGES for r in await self._registry.replicas(stage)]
        return pb.GetStatusResponse(
            replicas=[_replica(replica) for replica in replicas], models=_models(replicas)
        )

    async def queues(self) -> list[pb.Queue]:
        """What waits, by queue."""
        return [
            queue_message(name, await Queue(self._redis, name).inspect())
            for name in await queue_names(self._redis)
        ]

    async def canaries(self, models: Iterable[pb.ModelStatus]) -> list[pb.CanaryStatus]:
        """Of those models that have one."""
        names = sorted({model.model for model in models})
        return [c for name in names if (c := await self._canary(name)) is not None]

    async def _canary(self, name: str) -> pb.CanaryStatus | None:
        state = await self._canaries.state(name)
        if state is None:
            return None
        return pb.CanaryStatus(
            model=name,
            state=_known(pb.CanaryState, state.state),
            step=state.id,
            age=times.duration(state.age_s),
            stable=_tally(state.tallies["stable"]),
            canary=_tally(state.tallies["canary"]),
        )

    async def write_error(self) -> str:
        """Why Redis takes no writes; empty if it does. A replica and a full server still read."""
        try:
            with redis_errors():
                await self._redis.set(redis_keys.lease(_PROBE), b"1", px=_PROBE_MS)
        except PlinthError as error:
            return error.message
        except ResponseError as error:  # one more word for the same, such as NOREPLICAS
            return f"Redis takes no writes now: {error}"
        return ""


def _replica(replica: Replica) -> pb.ReplicaStatus:
    kv = replica.fields.get("kv")
    return pb.ReplicaStatus(
        stage=replica.stage,
        replica_id=replica.id,
        address=replica.address,
        running=int(replica.fields.get("running") or 0),
        waiting=int(replica.fields.get("waiting") or 0),
        kv_use=float(kv) if kv else None,
        revisions=[str(held["artifact"]) for held in replica.bindings],
    )


def _models(replicas: Iterable[Replica]) -> list[pb.ModelStatus]:
    """As the reconciler announces them."""
    for replica in replicas:
        if replica.stage == "reconciler":
            announced: list[dict[str, Any]] = json.loads(replica.fields.get("models", "[]"))
            return [
                pb.ModelStatus(
                    model=model["name"],
                    artifact=model["artifact"],
                    shards=model["shards"],
                    ready_shards=model["ready"],
                    state=_known(deployments_pb2.DeploymentState, model["state"]),
                    detail=model["detail"],
                    # While an upgrade rolls, a reconciler may not know of them yet.
                    min_shards=model.get("min_shards", model["shards"]),
                    max_shards=model.get("max_shards", model["shards"]),
                )
                for model in announced
            ]
    return []


def _known(enum: Any, said: str) -> Any:
    """Unspecified for a word of a newer version's."""
    return enums.number(enum, said) if said in enums.words(enum) else 0


def queue_message(name: str, info: QueueInfo) -> pb.Queue:
    """What a queue holds."""
    return pb.Queue(
        name=f"queues/{name}",
        waiting=info.length,
        claimed=info.pending,
        delayed=info.delayed,
        dead=info.dead,
        oldest_wait=times.duration(info.oldest_s),
    )


def _tally(tally: Tally) -> pb.RevisionTally:
    ttft_s = tally.ttft_quantile_s(_TAIL)
    return pb.RevisionTally(
        requests=tally.requests,
        errors=tally.errors,
        ttft_p95=None if ttft_s is None else times.duration(ttft_s),
        good=tally.good,
        bad=tally.bad,
    )
