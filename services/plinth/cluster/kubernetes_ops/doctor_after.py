"""`plinth k8s doctor` of an installed release: what keeps it from serving, or soon will.

Kubernetes is asked about pods, probes, secrets, certificates, volumes and budgets; the platform,
through the gateway, about Redis, models and what they are made of. No secret is ever shown.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from plinth.client import Client
from plinth.cluster.finding import Finding
from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.certificates import examine as examine_certificate
from plinth.cluster.kubernetes_ops.doctor_before import conflicts
from plinth.cluster.kubernetes_ops.gateway_client import PAGE
from plinth.cluster.kubernetes_ops.outcome import kubectl
from plinth.cluster.kubernetes_ops.release import (
    Release,
    component_of,
    is_ready,
    last_end,
    restarts,
    trouble,
)
from plinth.shared.api import enums
from plinth.shared.errors import NotFound, PermissionDenied, PlinthError
from plinth.v1 import deployments_pb2, operations_pb2

_MANY_RESTARTS = 5
_RECENT = timedelta(minutes=15)
OpenGateway = Callable[[], AbstractContextManager[Client]]


def examine(
    api: Api, release: Release, open_gateway: OpenGateway, models: list[str]
) -> list[Finding]:
    """Runs every check. models: references ("chat:prod") that must exist on the store."""
    pods = api.items("list pods", release.selector)
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("pods", lambda: _pods(release, pods)),
        ("probes", lambda: _probes(api, pods)),
        ("ray", lambda: _ray(release)),
        ("secrets", lambda: _secrets(api, pods)),
        ("volumes", lambda: _volumes(api, release)),
        ("budgets", lambda: _budgets(api, release)),
        ("releases", lambda: conflicts(api, release.name)),
        ("platform", lambda: _platform(api, release, open_gateway, models)),
    )
    found: list[Finding] = []
    for name, check in checks:
        try:
            found += check()
        except PermissionDenied as error:
            found.append(Finding(name, "warn", "not looked at", error.message))
        except PlinthError as error:
            found.append(Finding(name, "fail", "not answered", error.message))
    return found


def equivalents(release: Release) -> list[str]:
    """The looks by kubectl, as far as Kubernetes knows."""
    kinds = "pods,pvc,pdb" + (",rayservice" if release.mode == "rayservice" else "")
    return [
        kubectl(release.namespace, "get", kinds, "-l", release.selector),
        kubectl(release.namespace, "describe", "pods", "-l", release.selector),
        kubectl(release.namespace, "get", "events", "--field-selector=reason=Unhealthy"),
        kubectl(release.namespace, "get", "secrets"),
    ]


def _pods(release: Release, pods: list[Json]) -> Iterator[Finding]:
    for component in release.components:
        own = [pod for pod in pods if component_of(pod) == component]
        unwell = {pod["metadata"]["name"]: why for pod in own if (why := trouble(pod))}
        waiting = [p["metadata"]["name"] for p in own if not is_ready(p)]
        if unwell:
            name, why = next(iter(unwell.items()))
            yield Finding(f"pods {component}", "fail", f"{name}: {why}", _advice(why))
        elif waiting:
            advice = f"kubectl -n {release.namespace} describe pod {waiting[0]}"
            yield Finding(f"pods {component}", "warn", f"{', '.join(waiting)} not ready", advice)
        else:
            yield Finding(f"pods {component}", "ok", f"{len(own)} ready")
        for pod in own:
            if restarts(pod) >= _MANY_RESTARTS:
                name = pod["metadata"]["name"]
                told = f"{name}: {restarts(pod)} restarts, the last by {last_end(pod) or '?'}"
                advice = _advice(last_end(pod)) or f"plinth k8s logs {component} --previous"
                yield Finding(f"restarts {component}", "warn", told, advice)


def _advice(why: str) -> str:
    """What to do about the usual reasons."""
    for word, advice in (
        ("OOMKilled", "raise the service's resources.limits.memory, or serve a smaller model"),
        ("ImagePull", "check images.registry, the tag, and images.pullSecrets"),
        ("ErrImage", "check images.registry, the tag, and images.pullSecrets"),
        ("CreateContainerConfigError", "a Secret or ConfigMap that it names is missing"),
        ("Insufficient", "no node has room: add nodes, or lower the service's requests"),
        ("Unschedulable", "no node fits: check nodeSelector, tolerations, GPUs and requests"),
        ("CrashLoopBackOff", "plinth k8s logs STAGE --previous says how it ended"),
    ):
        if word in why:
            return advice
    return ""


def _probes(api: Api, pods: list[Json]) -> Iterator[Finding]:
    """Probes that failed lately, by the kubelet's events."""
    names = {pod["metadata"]["name"] for pod in pods if not is_ready(pod)}
    failed: dict[str, str] = {}
    since = datetime.now(UTC) - _RECENT
    for event in api.items("list events", fieldSelector="reason=Unhealthy"):
        name = event.get("involvedObject", {}).get("name", "")
        when = event.get("lastTimestamp") or event.get("eventTime") or ""
        if name in names and (not when or _time(when) >= since):
            failed[name] = str(event.get("message", ""))[:200]
    for name, message in sorted(failed.items()):
        advice = f"kubectl -n {api.namespace} logs {name}; is its model still loading?"
        yield Finding("probes", "fail", f"{name}: {message}", advice)
    if not failed:
        yield Finding("probes", "ok", "none failed lately on a pod that isn't ready")


def _ray(release: Release) -> Iterator[Finding]:
    if release.mode == "static":
        return
    status = release.rayservice.get("status", {})
    active = status.get("activeServiceStatus", {})
    applications = active.get("applicationStatuses") or {}
    unwell = {n: a for n, a in applications.items() if a.get("status") != "RUNNING"}
    if not active.get("rayClusterName"):
        pending = status.get("pendingServiceStatus", {}).get("rayClusterName", "none")
        advice = "plinth k8s logs head; kubectl -n kuberay-system logs deploy/kuberay-operator"
        yield Finding("ray", "fail", f"no active Ray cluster (pending: {pending})", advice)
    for name, one in unwell.items():
        told = f"{name} is {one.get('status')}: {str(one.get('message', ''))[-200:]}"
        yield Finding("serve", "fail", told, f"plinth k8s logs {name} head")
    if active.get("rayClusterName") and not unwell:
        yield Finding("ray", "ok", f"{active['rayClusterName']}: {len(applications)} applications")


def _secrets(api: Api, pods: list[Json]) -> Iterator[Finding]:
    """That what pods refer to is there, with its keys, and certificates are valid."""
    wanted: dict[str, set[str]] = {}
    stages: dict[str, str] = {}
    for pod in pods:
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            for one in container.get("env") or []:
                ref = (one.get("valueFrom") or {}).get("secretKeyRef")
                if ref and not ref.get("optional"):
                    wanted.setdefault(ref["name"], set()).add(ref["key"])
        for volume in pod["spec"].get("volumes") or []:
            if name := (volume.get("secret") or {}).get("secretName"):
                wanted.setdefault(name, set()).update(
                    item["key"] for item in volume["secret"].get("items") or []
                )
                if volume["name"] == "tls":
                    wanted[name] |= {"tls.crt", "tls.key", "ca.crt"}
                    stages[name] = _identity(component_of(pod))
    there = {one["metadata"]["name"]: one.get("data") or {} for one in api.items("list secrets")}
    wrong = False
    for name, keys in sorted(wanted.items()):
        lacking = keys - set(there.get(name, {}))
        if name not in there or lacking:
            wrong = True
            told = f"{name} does not exist" if name not in there else f"{name} lacks {lacking}"
            yield Finding("secrets", "fail", told, f"make it with the keys {sorted(keys)}")
        elif name in stages:
            yield from examine_certificate(name, _decoded(there[name]), stages[name])
    if not wrong:
        yield Finding("secrets", "ok", f"{len(wanted)} referred to, all there with their keys")


def _identity(component: str) -> str:
    """The stage that a component's certificate names."""
    names = {"head": "reconciler", "trainer-workers": "trainer"}
    return names.get(component, component)


def _decoded(data: Json) -> dict[str, bytes]:
    return {key: base64.b64decode(data[key]) for key in ("tls.crt", "ca.crt")}


def _volumes(api: Api, release: Release) -> Iterator[Finding]:
    claims = [
        claim
        for claim in api.items("list claims")
        if claim["metadata"]["name"].startswith((release.fullname, f"data-{release.fullname}"))
    ]
    unbound = [c["metadata"]["name"] for c in claims if c.get("status", {}).get("phase") != "Bound"]
    yield Finding(
        "volumes",
        "fail" if unbound else "ok",
        f"{', '.join(unbound)} not bound" if unbound else f"{len(claims)} bound",
        f"kubectl -n {release.namespace} describe pvc {unbound[0]}" if unbound else "",
    )


def _budgets(api: Api, release: Release) -> Iterator[Finding]:
    budgets = api.items("list budgets", release.selector)
    stuck = [
        budget["metadata"]["name"]
        for budget in budgets
        if not budget.get("status", {}).get("disruptionsAllowed", 0)
    ]
    yield Finding(
        "budgets",
        "warn" if stuck else "ok",
        f"{', '.join(stuck)} allow no disruption now" if stuck else f"{len(budgets)} have room",
        "no node with those pods can be drained until they are ready" if stuck else "",
    )


def _platform(
    api: Api, release: Release, open_gateway: OpenGateway, models: list[str]
) -> Iterator[Finding]:
    with open_gateway() as gateway:
        status = gateway.operations.get_status()
        yield Finding(
            "redis",
            "fail" if status.redis_error else "ok",
            status.redis_error or "takes writes",
            "is it a replica, full, or out of disk? Point redis.external at a primary, or raise "
            "redis.maxmemory"
            if status.redis_error
            else "",
        )
        dead = [
            f"{queue.name.removeprefix('queues/')} {queue.dead}"
            for queue in status.queues
            if queue.dead
        ]
        if dead:
            told = f"dead letters: {', '.join(dead)}"
            yield Finding("queues", "warn", told, "plinth queue dead NAME says why each died")
        yield from _models(gateway, status, models)
        yield from _rival(api, release, status)


def _models(
    gateway: Client, status: operations_pb2.GetStatusResponse, models: list[str]
) -> Iterator[Finding]:
    deployments = list(gateway.deployments.list_deployments(page_size=PAGE))
    references = {one.spec.artifact for one in deployments} | set(models)
    for reference in sorted(references):
        try:
            gateway.artifacts.get_artifact(f"artifacts/{reference}")
        except NotFound as error:
            advice = (
                "plinth models list shows what there is; plinth models alias NAME:ALIAS VERSION "
                "makes an alias"
            )
            yield Finding(f"model {reference}", "fail", error.message, advice)
        else:
            yield Finding(f"model {reference}", "ok", "is on the store")
    for model in status.models:
        state = enums.word(deployments_pb2.DeploymentState, model.state)
        if state != "ready" or model.ready_shards < model.shards:
            yield Finding(
                f"serving {model.name}",
                "fail" if not model.ready_shards else "warn",
                f"{model.ready_shards} of {model.shards} shards, {state}: {model.detail}",
                "is there an inference pod for each shard? plinth k8s scale inference N",
            )
    if not deployments:
        yield Finding("models", "warn", "none is to be served", "plinth models serve NAME")


def _rival(
    api: Api, release: Release, status: operations_pb2.GetStatusResponse
) -> Iterator[Finding]:
    """The model that the settings name as a second answer must be served."""
    name = f"{release.fullname}-config"
    for one in api.items("list configmaps", release.selector):
        if one["metadata"]["name"] != name:
            continue
        settings: Any = yaml.safe_load(one["data"].get("plinth.yaml", "")) or {}
        rival = (settings.get("gateway") or {}).get("preference_rival", "")
        if rival and rival not in {model.name for model in status.models}:
            advice = "serve it, or change config.gateway.preference_rival"
            yield Finding("settings", "fail", f"preference_rival {rival!r} isn't served", advice)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
