"""A stack of trivial stages as its tests see it: who answers, which models are told of."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from patience import PATIENCE_S
from plinth.cluster.stack import Stack, connect_clients
from plinth.shared.registry import Replica
from plinth.shared.store import ArtifactStore


def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.2)
    return found


def announced(stack: Stack, stage: str) -> list[Replica]:
    async def ask() -> list[Replica]:
        redis, _, registry, clients = connect_clients(stack.settings)
        try:
            return await registry.replicas(stage)
        finally:
            await clients.close()
            await redis.aclose()

    return asyncio.run(ask())


def _answers(replica: Replica) -> bool:
    with grpc.insecure_channel(replica.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def answering(stack: Stack, stage: str, without: str = "") -> list[Replica]:
    return [r for r in announced(stack, stage) if r.id != without and _answers(r)]


def publish_model(stack: Stack, name: str, content: str = "") -> str:
    source = stack.settings.data_dir / f"source-{name}"
    source.mkdir(exist_ok=True)
    (source / "config.json").write_text(json.dumps({"name": name + content}))
    return ArtifactStore(stack.settings.store()).publish(name, "model", source).ref


def told_models(stack: Stack) -> dict[str, dict[str, Any]]:
    for replica in announced(stack, "reconciler"):
        return {m["name"]: m for m in json.loads(replica.fields["models"])}
    return {}
