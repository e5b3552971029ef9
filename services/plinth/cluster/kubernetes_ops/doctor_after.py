"""`plinth k8s doctor` of an installed release: what keeps it from serving, or soon will.

Kubernetes is asked about pods, probes, secrets, certificates, volumes and budgets; the platform,
through the gateway, about Redis, models and what they are made of. No secret is ever shown.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import yaml

from plinth.client import Client
from plinth.cluster.finding import Finding
from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.certificates import examine as examine_certificate
from plinth.cluster.kubernetes_ops.doctor_before import conflicts
from plinth.cluster.kubernetes_ops.doctor_pods import check_pods, check_probes
from plinth.cluster.kubernetes_ops.events import of_release
from plinth.cluster.kubernetes_ops.gateway_client import PAGE
from plinth.cluster.kubernetes_ops.outcome import kubectl
from plinth.cluster.kubernetes_ops.release import Release, component_of
from plinth.shared.api import enums
from plinth.shared.errors import NotFound, PermissionDenied, PlinthError
from plinth.v1 import deployments_pb2, operations_pb2

OpenGateway = Callable[[], AbstractContextManager[Client]]


def examine(
    api: Api, release: Release, open_gateway: OpenGateway, models: list[str]
) -> list[Finding]:
    """Runs every check. models: references ("chat:prod") that must exist on the store."""
    pods = api.items("list pods", release.selector)
    events, found = _events(api, release, pods)
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("pods", lambda: check_pods(release, pods, events)),
        ("probes", lambda: check_probes(release, pods, events)),
        ("ray", lambda: _ray(release)),
        ("secrets", lambda: _secrets(api, release, pods)),
        ("volumes", lambda: _volumes(api, release)),
        ("budgets", lambda: _budgets(api, release)),
        ("releases", lambda: conflicts(api, release.name)),
        ("platform", lambda: _platform(api, release, open_gateway, models)),
    )
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
        kubectl(release.namespace, "get", "events", "--field-selector=type=Warning"),
        kubectl(release.namespace, "get", "secrets"),
    ]


def _events(api: Api, release: Release, pods: list[Json]) -> tuple[list[Json], list[Finding]]:
    """The release's warnings, newest first; and that they could not be had."""
    try:
        warned = api.items("list events", fieldSelector="type=Warning")
    except PlinthError as error:
        return [], [Finding("events", "warn", "not looked at", error.message)]
    return of_release(release, pods, warned), []


def _ray(release: Release) -> Iterator[Finding]:
    if release.mode == "static":
        return
    status = release.rayservice.get("status", {})
    active = status.get("activeServiceStatus", {})
    applications = active.get("applicationStatuses") or {}
    unwell = {n: a for n, a in applications.items() if a.get("status") != "RUNNING"}
    if active.get("rayClusterName"):  # one that Serve says nothing of does not run
        unwell |= {name: {"status": "unknown"} for name in _deployed(release) - set(applications)}
    if not active.get("rayClusterName"):
        pending = status.get("pendingServiceStatus", {}).get("rayClusterName", "none")
        advice = "plinth k8s logs head; kubectl -n kuberay-system logs deploy/kuberay-operator"
        yield Finding("ray", "fail", f"no active Ray cluster (pending: {pending})", advice)
    for name, one in unwell.items():
        told = f"{name} is {one.get('status')}: {str(one.get('message', ''))[-200:]}"
        yield Finding("serve", "fail", told, f"plinth k8s logs {name} head")
    if active.get("rayClusterName") and not unwell:
        yield Finding("ray", "ok", f"{active['rayClusterName']}: {len(applications)} applications")


def _deployed(release: Release) -> set[str]:
    """Applications that the RayService asks Serve for."""
    config = yaml.safe_load(release.rayservice["spec"].get("serveConfigV2") or "{}")
    return {str(one["name"]) for one in config.get("applications", [])}


def _secrets(api: Api, release: Release, pods: list[Json]) -> Iterator[Finding]:
    """That what pods refer to, also those that can't be made, is there, with its keys, and
    certificates are valid."""
    wanted: dict[str, set[str]] = {}
    stages: dict[str, str] = {}
    specs = [(component, template["spec"]) for component, template in release.templates]
    specs += [(component_of(pod), pod["spec"]) for pod in pods]
    for component, spec in specs:
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            for one in container.get("env") or []:
                ref = (one.get("valueFrom") or {}).get("secretKeyRef")
                if ref and not ref.get("optional"):
                    wanted.setdefault(ref["name"], set()).add(ref["key"])
        for volume in spec.get("volumes") or []:
            if name := (volume.get("secret") or {}).get("secretName"):
                wanted.setdefault(name, set()).update(
                    item["key"] for item in volume["secret"].get("items") or []
                )
                if volume["name"] == "tls":
                    wanted[name] |= {"tls.crt", "tls.key", "ca.crt"}
                    stages[name] = _identity(component)
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
    phases = {
        claim["metadata"]["name"]: claim.get("status", {}).get("phase")
        for claim in api.items("list claims")
    }
    wanted = sorted(release.claims)
    missing = [name for name in wanted if name not in phases]
    unbound = [name for name in wanted if name in phases and phases[name] != "Bound"]
    told = [f"{', '.join(missing)} missing"] if missing else []
    told += [f"{', '.join(unbound)} not bound"] if unbound else []
    bad = [*unbound, *missing]
    yield Finding(
        "volumes",
        "fail" if bad else "ok",
        "; ".join(told) or f"{len(wanted)} bound",
        kubectl(release.namespace, "describe", "pvc", bad[0]) if bad else "",
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
                f"serving {model.model}",
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
        if rival and rival not in {model.model for model in status.models}:
            advice = "serve it, or change config.gateway.preference_rival"
            yield Finding("settings", "fail", f"preference_rival {rival!r} isn't served", advice)
