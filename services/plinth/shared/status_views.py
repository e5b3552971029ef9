"""The platform's status as JSON, the same for a stack on this machine and for a release on
Kubernetes."""

from __future__ import annotations

from typing import Any

from plinth.shared.api import enums, times
from plinth.v1 import deployments_pb2, operations_pb2, runs_pb2

Json = dict[str, Any]
RUNS_SHOWN = 5
_DONE = frozenset({runs_pb2.STEP_STATE_SUCCEEDED, runs_pb2.STEP_STATE_REUSED})


def replica(one: operations_pb2.ReplicaStatus) -> Json:
    """kv_use: share of the KV cache in use; None where a stage has none."""
    return {
        "stage": one.stage,
        "replica_id": one.replica_id,
        "address": one.address,
        "running": one.running,
        "waiting": one.waiting,
        "kv_use": one.kv_use if one.HasField("kv_use") else None,
        "revisions": list(one.revisions),
    }


def model(one: operations_pb2.ModelStatus) -> Json:
    """shards: wanted now, which load moves between min_shards and max_shards; ready: of them."""
    return {
        "model": one.model,
        "artifact": one.artifact,
        "shards": one.shards,
        "min_shards": one.min_shards,
        "max_shards": one.max_shards,
        "ready": one.ready_shards,
        "state": enums.word(deployments_pb2.DeploymentState, one.state),
        "detail": one.detail,
    }


def queue(one: operations_pb2.Queue) -> Json:
    """Items of one queue by what they wait for; for how long the oldest that waits has."""
    return {
        "name": one.name.removeprefix("queues/"),
        "waiting": one.waiting,
        "claimed": one.claimed,
        "delayed": one.delayed,
        "dead": one.dead,
        "oldest_wait_s": times.seconds(one.oldest_wait),
    }


def canary(one: operations_pb2.CanaryStatus) -> Json:
    """Both revisions' figures, side by side."""
    return {
        "model": one.model,
        "state": enums.word(operations_pb2.CanaryState, one.state),
        "step": one.step,
        "age_s": round(times.seconds(one.age)),
        "stable": _tally(one.stable),
        "canary": _tally(one.canary),
    }


def run(one: runs_pb2.Run) -> Json:
    """How far it is."""
    return {
        "run_id": one.name.removeprefix("runs/"),
        "name": one.status.display_name,
        "state": enums.word(runs_pb2.RunState, one.status.state),
        "steps_done": sum(step.state in _DONE for step in one.status.steps),
        "steps": len(one.status.steps),
    }


def _tally(one: operations_pb2.RevisionTally) -> Json:
    return {
        "requests": one.requests,
        "errors": one.errors,
        "ttft_p95_s": times.seconds(one.ttft_p95) if one.HasField("ttft_p95") else None,
        "good": one.good,
        "bad": one.bad,
    }
