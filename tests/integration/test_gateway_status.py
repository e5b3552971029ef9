"""GetStatus at the gateway's gRPC door: what an operator sees of all stages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from gateway_stages import Stack, running_stack
from patience import PATIENCE_S
from plinth.gateway.keys.api_keys import KeyStore
from plinth.shared.api import times
from plinth.shared.canary import Canaries
from plinth.shared.queue import Queue
from plinth.shared.registry import Registry
from plinth.v1 import deployments_pb2, operations_pb2, operations_pb2_grpc


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: Redis) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


async def status(stack: Stack, key: str) -> operations_pb2.GetStatusResponse:
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = operations_pb2_grpc.OperationsServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        found: operations_pb2.GetStatusResponse = await stub.GetStatus(
            operations_pb2.GetStatusRequest(), metadata=metadata, timeout=PATIENCE_S
        )
        return found


async def test_what_is_announced_queued_and_on_trial(stack: Stack, redis_client: Redis) -> None:
    model = {"name": "chat", "artifact": "chat@1", "shards": 2, "ready": 1}
    # The one as a reconciler of before tells it, the other as one of now.
    ranged = {**model, "name": "code", "state": "ready", "detail": "", "min_shards": 1}
    models = [
        {**model, "state": "starting", "detail": "no room"},
        {**ranged, "max_shards": 4},
    ]
    registry = Registry(redis_client, ttl_s=60)
    await registry.announce("reconciler", "r-1", "10.0.0.9:50051", {"models": json.dumps(models)})
    fields = {
        "bindings": json.dumps([{"model": "chat", "artifact": "chat@1"}]),
        "kv": "0.2500",
        "running": "3",
        "waiting": "2",
    }
    await registry.announce("inference", "z-shard", "10.0.0.7:50051", fields)
    await Queue(redis_client, "train").add("job-1", b"work")
    canaries = Canaries(redis_client)
    await canaries.open("chat", "run.trial.1", stable="chat@1", canary="chat@2", share=0.5)
    chosen = await canaries.choose("chat", "chat@2")
    assert chosen is not None
    id, role, _ = chosen
    settled = {"outcome": "error", "tokens": 0, "ttft_s": 0.5, "answer": "a"}
    await canaries.settle("chat", id, role, **settled)

    found = await status(stack, stack.key)
    shard = next(r for r in found.replicas if r.replica_id == "z-shard")
    assert (shard.stage, shard.address) == ("inference", "10.0.0.7:50051")
    assert (shard.running, shard.waiting, shard.kv_use) == (3, 2, 0.25)
    assert list(shard.revisions) == ["chat@1"]
    assert not next(r for r in found.replicas if r.stage == "tokenizer").HasField("kv_use")
    assert [(m.model, m.shards, m.ready_shards, m.state, m.detail) for m in found.models] == [
        ("chat", 2, 1, deployments_pb2.DEPLOYMENT_STATE_STARTING, "no room"),
        ("code", 2, 1, deployments_pb2.DEPLOYMENT_STATE_READY, ""),
    ]
    assert [(m.min_shards, m.max_shards) for m in found.models] == [(2, 2), (1, 4)]
    assert [(q.name, q.waiting, q.claimed, q.dead) for q in found.queues] == [
        ("queues/train", 1, 0, 0)
    ]
    (canary,) = found.canaries
    assert (canary.model, canary.state, canary.step) == (
        "chat",
        operations_pb2.CANARY_STATE_OPEN,
        "run.trial.1",
    )
    tallies = {"stable": canary.stable, "canary": canary.canary}
    assert (tallies[role].requests, tallies[role].errors) == (1, 1)
    assert times.seconds(tallies[role].ttft_p95) == pytest.approx(0.5, rel=0.05)
    assert found.redis_error == ""


async def test_a_redis_that_only_reads_is_told(stack: Stack, redis_client: Redis) -> None:
    await redis_client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        assert "read only" in (await status(stack, stack.key)).redis_error
    finally:
        await redis_client.execute_command("REPLICAOF", "NO", "ONE")
    await redis_client.config_set("min-replicas-to-write", 1)
    try:
        assert "takes no writes" in (await status(stack, stack.key)).redis_error
    finally:
        await redis_client.config_set("min-replicas-to-write", 0)
    assert (await status(stack, stack.key)).redis_error == ""


async def test_it_takes_the_scope_of_who_deploys(stack: Stack, redis_client: Redis) -> None:
    plain, _ = await KeyStore(redis_client).create("default", {"inference"})
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await status(stack, plain)
    assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "deployments" in (raised.value.details() or "")


async def test_prometheus_is_told_whom_to_scrape(stack: Stack, redis_client: Redis) -> None:
    """Prometheus 2.28 and later asks this itself; tests/e2e/test_prometheus.py has a real one."""
    registry = Registry(redis_client, ttl_s=60)
    await registry.announce("trainer", "t-1", "10.0.0.9:50051", {"metrics": "10.0.0.9:9464"})
    await registry.announce("inference", "s-1", "10.0.0.8:50051", {"metrics": "10.0.0.8:9464"})
    url = f"{stack.url}/v1/metrics/targets"
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        answer = await client.get(url, headers={"Authorization": f"Bearer {stack.key}"})
        assert answer.headers["content-type"] == "application/json"
        found = {one["labels"]["job"]: one for one in answer.json()}
        assert found == {
            "plinth-gateway": {
                "targets": [stack.url.removeprefix("http://")],
                "labels": {"job": "plinth-gateway", "spares": ""},
            },
            "plinth-trainer": {
                "targets": ["10.0.0.9:9464"],
                "labels": {"job": "plinth-trainer", "spares": "", "replica": "t-1"},
            },
            "plinth-inference": {
                "targets": ["10.0.0.8:9464"],
                "labels": {"job": "plinth-inference", "spares": "yes", "replica": "s-1"},
            },
        }
        keys = KeyStore(redis_client)
        plain, _ = await keys.create("team", {"metrics"}, "prometheus")
        told = await client.get(url, headers={"Authorization": f"Bearer {plain}"})
        assert told.json() == answer.json()
        plain, _ = await keys.create("team", {"inference"}, "no operator")
        for headers, status_code in (({}, 401), ({"Authorization": f"Bearer {plain}"}, 403)):
            assert (await client.get(url, headers=headers)).status_code == status_code
