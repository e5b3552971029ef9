"""How a release is: pods by stage from Kubernetes; revisions, KV use, queues and runs from the
platform; last errors from both. What can't be asked is named in `unknown`, and the rest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, TypeVar

from plinth.client import Client
from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.events import involved, of_release, told
from plinth.cluster.kubernetes_ops.outcome import kubectl
from plinth.cluster.kubernetes_ops.release import (
    Release,
    component_of,
    is_ready,
    last_end,
    restarts,
    trouble,
)
from plinth.shared import status_views as views
from plinth.shared.errors import PlinthError
from plinth.v1 import deployments_pb2, operations_pb2
from plinth.v1 import runs_pb2 as pb

T = TypeVar("T")
EVENTS = 8


def gather(
    api: Api, release: Release, gateway: Callable[[], AbstractContextManager[Client]]
) -> dict[str, Any]:
    """{"release", "stages", "replicas", "models", "queues", "canaries", "runs", "errors",
    "unknown", "kubectl"}: JSON-ready, for one screen."""
    unknown: dict[str, str] = {}
    none: list[Json] = []
    pods = _ask("pods", lambda: api.items("list pods", release.selector), unknown, none)
    events = _ask(
        "events", lambda: api.items("list events", fieldSelector="type=Warning"), unknown, none
    )
    status, runs = operations_pb2.GetStatusResponse(), list[pb.Run]()
    try:
        with gateway() as opened:
            status = _ask("platform", opened.operations.get_status, unknown, status)
            runs = _ask("runs", lambda: _newest(opened), unknown, runs)
    except PlinthError as error:
        unknown["platform"] = error.message
    return {
        "release": {
            "name": release.name,
            "namespace": release.namespace,
            "mode": release.mode,
            "version": release.version,
            "ray": _ray(release),
        },
        "stages": [_stage(release, one, pods, status) for one in release.components],
        "replicas": [_replica(replica, pods) for replica in status.replicas],
        "models": [views.model(model) for model in status.models],
        "queues": [views.queue(queue) for queue in status.queues],
        "canaries": [views.canary(canary) for canary in status.canaries],
        "runs": [views.run(run) for run in runs],
        "errors": _errors(release, pods, events, status, runs),
        "unknown": unknown,
        "kubectl": equivalents(release),
    }


def equivalents(release: Release) -> list[str]:
    """The same by kubectl, as far as Kubernetes knows it."""
    kind = "statefulset" if release.mode == "static" else "rayservice,raycluster"
    selector = release.selector
    return [
        kubectl(release.namespace, "get", f"pods,deployment,{kind}", "-l", selector, "-o", "wide"),
        kubectl(
            release.namespace,
            "get",
            "events",
            "--field-selector=type=Warning",
            "--sort-by=.lastTimestamp",
        ),
        kubectl(release.namespace, "port-forward", f"svc/{release.fullname}-gateway", "8081:grpc"),
    ]


def _ask(what: str, ask: Callable[[], T], unknown: dict[str, str], empty: T) -> T:
    try:
        return ask()
    except PlinthError as error:
        unknown[what] = error.message
        return empty


def _ray(release: Release) -> str:
    """In a word, how the RayService is."""
    status = release.rayservice.get("status", {})
    if not release.rayservice:
        return ""
    active = status.get("activeServiceStatus", {}).get("rayClusterName", "no cluster")
    pending = status.get("pendingServiceStatus", {}).get("rayClusterName", "")
    word = str(status.get("serviceStatus") or "not running")
    return f"{word}, {active}" + (f", upgrading to {pending}" if pending else "")


def _stage(
    release: Release, component: str, pods: list[Json], status: operations_pb2.GetStatusResponse
) -> Json:
    own = [pod for pod in pods if component_of(pod) == component]
    stage = "reconciler" if component == "head" else component
    replicas = [replica for replica in status.replicas if replica.stage == stage]
    kv = [replica.kv_use for replica in replicas if replica.HasField("kv_use")]
    return {
        "stage": component,
        "wanted": release.wanted(component),
        "pods": len(own),
        "ready": sum(is_ready(pod) for pod in own),
        "restarts": sum(restarts(pod) for pod in own),
        "replicas": len(replicas),
        "running": sum(replica.running for replica in replicas),
        "waiting": sum(replica.waiting for replica in replicas),
        "kv_use": max(kv) if kv else None,
        "revisions": sorted({revision for r in replicas for revision in r.revisions}),
        "images": sorted({c["image"] for pod in own for c in pod["spec"]["containers"][:1]}),
    }


def _replica(replica: operations_pb2.ReplicaStatus, pods: list[Json]) -> Json:
    host = replica.address.rpartition(":")[0].strip("[]")
    pod = next((p for p in pods if p.get("status", {}).get("podIP") == host), None)
    return {
        **views.replica(replica),
        "pod": pod["metadata"]["name"] if pod else "",
        "node": pod["spec"].get("nodeName", "") if pod else "",
    }


def _errors(
    release: Release,
    pods: list[Json],
    events: list[Json],
    status: operations_pb2.GetStatusResponse,
    runs: Iterable[pb.Run],
) -> list[Json]:
    """[{"where", "what"}]: what is wrong now first, then how things ended last, then events."""
    found = []
    if status.redis_error:
        found.append({"where": "redis", "what": status.redis_error})
    for pod in pods:
        if what := trouble(pod) or last_end(pod):
            found.append({"where": pod["metadata"]["name"], "what": what})
    ray = release.rayservice.get("status", {})
    for serving in ("activeServiceStatus", "pendingServiceStatus"):
        for name, app in (ray.get(serving, {}).get("applicationStatuses") or {}).items():
            if app.get("status") not in {None, "RUNNING"} and app.get("message"):
                found.append({"where": f"serve/{name}", "what": app["message"].strip()[-300:]})
    for model in status.models:
        if model.detail and model.state != deployments_pb2.DEPLOYMENT_STATE_READY:
            found.append({"where": f"model/{model.model}", "what": model.detail})
    found += [
        {"where": run.name, "what": run.status.error}
        for run in runs
        if run.status.state == pb.RUN_STATE_FAILED and run.status.error
    ]
    return found + _warnings(of_release(release, pods, events))


def _warnings(events: list[Json]) -> list[Json]:
    """The newest warnings, one per object and reason."""
    newest: dict[tuple[str, str], Json] = {}
    for event in events:
        where = involved(event)
        what = {"where": where, "what": told(event)}
        newest.setdefault((where, event.get("reason", "")), what)
    return list(newest.values())[:EVENTS]


def _newest(gateway: Client) -> list[pb.Run]:
    return list(islice(gateway.runs.list_runs(page_size=views.RUNS_SHOWN), views.RUNS_SHOWN))
