"""`plinth k8s doctor` before an install: can this cluster and this namespace take the chart?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from plinth.cluster.finding import Finding
from plinth.cluster.kubernetes_ops.api import Api, Json
from plinth.cluster.kubernetes_ops.outcome import command, kubectl
from plinth.cluster.kubernetes_ops.release import INSTANCE, PART_OF
from plinth.cluster.kubernetes_ops.rights import check_rights
from plinth.shared.errors import NotFound, PermissionDenied, PlinthError

OLDEST = (1, 30)  # the chart's kubeVersion
RAY_KINDS = {"rayservices", "rayclusters"}
# What a release helm was killed in the middle of looks like.
_STUCK = {"pending-install", "pending-upgrade", "pending-rollback"}
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


@dataclass(frozen=True)
class Plan:
    """What is to be installed. mode: of Ray, as in values.yaml. gpus: how many in all. tls: by
    cert-manager. release: its name, for conflicts."""

    mode: str = "rayservice"
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    cert_manager: bool = False
    release: str = "plinth"


def examine(api: Api, plan: Plan) -> list[Finding]:
    """Runs every check; one that may not look says so and the others go on. Unavailable,
    Unauthenticated when nobody answers at all."""
    found = [_version(api)]
    checks: tuple[tuple[str, Callable[[Api, Plan], Iterator[Finding]]], ...] = (
        ("rights", _rights),
        ("crds", _definitions),
        ("storage", _storage),
        ("gpus", _gpus),
        ("quotas", _quotas),
        ("releases", _releases),
    )
    for name, check in checks:
        try:
            found += check(api, plan)
        except PermissionDenied as error:
            found.append(Finding(name, "warn", "not looked at", error.message))
        except PlinthError as error:
            found.append(Finding(name, "fail", "not answered", error.message))
    return found


def equivalents(api: Api) -> list[str]:
    """The looks by kubectl and helm."""
    return [
        "kubectl version",
        "kubectl api-resources --api-group=ray.io",
        "kubectl get storageclass",
        "kubectl get nodes -o wide",
        kubectl(api.namespace, "describe", "resourcequota"),
        command("helm", "list", "-n", api.namespace, "--all"),
    ]


def _version(api: Api) -> Finding:
    told = api.call("version")
    numbers = tuple(
        int("".join(c for c in str(told.get(key, "0")) if c.isdigit()) or 0)
        for key in ("major", "minor")
    )
    new = numbers >= OLDEST
    return Finding(
        "kubernetes",
        "ok" if new else "fail",
        f"{told.get('gitVersion', '?')} at {api.host}",
        "" if new else f"the chart wants {OLDEST[0]}.{OLDEST[1]} or newer: upgrade the cluster",
    )


def _rights(api: Api, plan: Plan) -> Iterator[Finding]:
    yield from check_rights(api, mode=plan.mode, cert_manager=plan.cert_manager)


def _definitions(api: Api, plan: Plan) -> Iterator[Finding]:
    if plan.mode == "rayservice":
        there = _kinds(api, "ray.io", "v1")
        yield Finding(
            "kuberay",
            "ok" if there >= RAY_KINDS else "fail",
            "ray.io/v1 is served" if there >= RAY_KINDS else "no RayService in ray.io/v1",
            ""
            if there >= RAY_KINDS
            else "install KubeRay's operator (1.6 or newer): helm install kuberay-operator "
            "kuberay/kuberay-operator -n kuberay-system; or set ray.mode=static",
        )
    certificates = "certificates" in _kinds(api, "cert-manager.io", "v1")
    if plan.cert_manager or certificates:
        yield Finding(
            "cert-manager",
            "ok" if certificates else "fail",
            "cert-manager.io/v1 is served" if certificates else "no Certificate",
            "" if certificates else "install cert-manager, or give tls.existingSecrets",
        )
    monitors = "servicemonitors" in _kinds(api, "monitoring.coreos.com", "v1")
    yield Finding(
        "monitoring",
        "ok" if monitors else "warn",
        "ServiceMonitors are known" if monitors else "no Prometheus operator",
        "" if monitors else "scrape ports 9464 and 8090 of the pods by your own configuration",
    )


def _kinds(api: Api, group: str, version: str) -> set[str]:
    try:
        answer = api.call("group", group=group, version=version)
    except NotFound:
        return set()
    return {resource["name"] for resource in answer.get("resources", [])}


def _storage(api: Api, plan: Plan) -> Iterator[Finding]:
    classes = {c["metadata"]["name"]: c for c in api.items("list storage classes")}
    default = [
        name
        for name, one in classes.items()
        if (one["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    ]
    if not classes:
        advice = "install a provisioner; or use store.url and redis.external, which need no volume"
        yield Finding("storage", "fail", "no storage class", advice)
        return
    names = ", ".join(f"{n} (default)" if n in default else n for n in sorted(classes))
    yield Finding(
        "storage",
        "ok" if len(default) == 1 else "warn",
        names,
        ""
        if len(default) == 1
        else "not one default class: name one in redis.persistence.storageClass and "
        "store.persistence.storageClass",
    )
    provisioners = {str(one.get("provisioner", "")) for one in classes.values()}
    shared = any(word in p for p in provisioners for word in ("nfs", "efs", "file", "cephfs"))
    yield Finding(
        "shared store",
        "ok" if shared else "warn",
        "a provisioner that shares volumes between nodes"
        if shared
        else f"no provisioner known to give ReadWriteMany ({', '.join(sorted(provisioners))})",
        ""
        if shared
        else "use store.url (s3://, gs://); or store.persistence.singleNode=true on one node",
    )


def _gpus(api: Api, plan: Plan) -> Iterator[Finding]:
    nodes = api.items("list nodes")
    ready = [node for node in nodes if _is_ready(node)]
    free = sum(
        int(_amount(node.get("status", {}).get("allocatable", {}).get(plan.gpu_resource, "0")))
        for node in ready
    )
    labelled = [
        node["metadata"]["name"]
        for node in ready
        if (node["metadata"].get("labels") or {}).get("nvidia.com/gpu.present") == "true"
        and plan.gpu_resource not in node.get("status", {}).get("allocatable", {})
    ]
    yield Finding(
        "nodes",
        "ok" if len(ready) == len(nodes) and nodes else "warn" if ready else "fail",
        f"{len(ready)} of {len(nodes)} are ready",
        "" if len(ready) == len(nodes) and nodes else "kubectl get nodes; kubectl describe node",
    )
    if labelled:
        yield Finding(
            "gpu operator",
            "fail" if plan.gpus else "warn",
            f"{', '.join(labelled)}: GPUs in the machine and no {plan.gpu_resource}",
            "the device plugin or the driver does not run there: kubectl -n gpu-operator get pods",
        )
    enough = free >= plan.gpus
    yield Finding(
        "gpus",
        "ok" if enough else "fail",
        f"{free} of {plan.gpu_resource} on ready nodes, {plan.gpus} wanted",
        "" if enough else "install the GPU operator, add nodes, or set gpu.count=0 and device=cpu",
    )


def _amount(quantity: str) -> float:
    """A quantity ("500m", "4Gi", "2") as a number."""
    from kubernetes.utils.quantity import parse_quantity  # noqa: PLC0415

    return float(parse_quantity(quantity))


def _is_ready(node: Json) -> bool:
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not node["spec"].get("unschedulable", False)


def _quotas(api: Api, plan: Plan) -> Iterator[Finding]:
    quotas = api.items("list quotas")
    if not quotas:
        yield Finding("quotas", "ok", f"none in {api.namespace}")
    for quota in quotas:
        status = quota.get("status", {})
        name = f"quota {quota['metadata']['name']}"
        if "hard" not in status:  # not counted yet: nothing used is not nothing left
            told = "Kubernetes has not counted what it is used for"
            yield Finding(name, "warn", told, "look again; kubectl describe resourcequota")
            continue
        hard, used = status["hard"], status.get("used", {})
        left = {key: _amount(value) - _amount(used.get(key, "0")) for key, value in hard.items()}
        spent = sorted(key for key, value in left.items() if value <= 0)
        gpu = left.get(f"requests.{plan.gpu_resource}")
        short = gpu is not None and gpu < plan.gpus
        if short:
            spent.append(f"requests.{plan.gpu_resource} ({gpu:g} left, {plan.gpus} wanted)")
        told = ", ".join(f"{key} {used.get(key, '0')}/{hard[key]}" for key in sorted(hard))
        yield Finding(
            name,
            "fail" if spent else "ok",
            told,
            f"used up: {', '.join(spent)}; raise the quota, or free some" if spent else "",
        )


def _releases(api: Api, plan: Plan) -> Iterator[Finding]:
    """Helm's own records, and what other releases of the chart in this namespace use."""
    records = api.items("list secrets", "owner=helm", fieldSelector="type=helm.sh/release.v1")
    newest: dict[str, Json] = {}
    for record in records:
        labels = record["metadata"]["labels"]
        before = newest.get(labels["name"])
        if before is None or int(before["version"]) < int(labels["version"]):
            newest[labels["name"]] = labels
    stuck = sorted(name for name, labels in newest.items() if labels["status"] in _STUCK)
    for name in stuck:
        yield Finding(
            f"release {name}",
            "fail",
            f"revision {newest[name]['version']} is {newest[name]['status']}: helm was cut off",
            f"helm rollback {name} -n {api.namespace}, or helm uninstall if it is the first",
        )
    yield from conflicts(api, plan.release)
    if not stuck:
        names = ", ".join(f"{n} ({newest[n]['status']})" for n in sorted(newest)) or "none"
        yield Finding("helm", "ok", f"releases in {api.namespace}: {names}")


def conflicts(api: Api, release: str) -> Iterator[Finding]:
    """Other releases of the chart in this namespace; fatal where one shares the Redis database."""
    used: dict[str, str] = {}
    for one in api.items("list configmaps", PART_OF):
        notes = one["metadata"].get("annotations") or {}
        if "plinth.dev/redis" in notes:
            used[one["metadata"]["labels"][INSTANCE]] = notes["plinth.dev/redis"]
    others = sorted(set(used) - {release})
    for other in others:
        same = used[other] == used.get(release)
        yield Finding(
            "two releases",
            "fail" if same else "warn",
            f"{other} is in {api.namespace} too, with Redis {used[other]}",
            "they would serve each other's queues: set redis.database to another one, or give "
            f"{release} its own Redis"
            if same
            else "keep their redis.database apart; a namespace of its own for each is clearer",
        )
