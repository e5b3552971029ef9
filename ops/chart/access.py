"""Checks: who may do what. Rights at the API server, edges of the network, rights of containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import outside
from plinth.cluster.trials.pods import RIGHTS
from release import Document, Pod, Release, title

Right = tuple[str, str, str]  # API group, resource, verb
# Programs that speak to the API server, and with which rights.
USES: Mapping[str, frozenset[Right]] = {
    "plinth.cluster.trials.chaos": frozenset(right[:3] for right in RIGHTS.values())
}


def check(release: Release) -> Iterator[str]:
    """Everything about access."""
    yield from _rights(release)
    for pod in release.pods:
        yield from _container_rights(pod)
    if release.of("NetworkPolicy"):
        yield from _edges(release)
        yield from outside.check(release)


def _rights(release: Release) -> Iterator[str]:
    """Each verb that is used is granted, and each that is granted is used."""
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        for one in release.of(kind):
            yield f"{title(one)}: a release has no business outside its namespace"
    bound: dict[str, set[Right]] = {}
    for binding in release.of("RoleBinding"):
        role = release.named("Role", binding["roleRef"]["name"])
        if role is None:
            yield f"{title(binding)} binds Role/{binding['roleRef']['name']}, which is missing"
            continue
        for subject in binding["subjects"]:
            if release.named("ServiceAccount", subject["name"]) is None:
                yield f"{title(binding)} binds to {subject['name']}, which is missing"
            bound.setdefault(subject["name"], set()).update(_granted(role))
    roles = {binding["roleRef"]["name"] for binding in release.of("RoleBinding")}
    for role in release.of("Role"):
        if role["metadata"]["name"] not in roles:
            yield f"{title(role)} is bound to nobody"
    used: dict[str, set[Right]] = {}
    scaled = {
        f"{title(one)} head"
        for one in release.of("RayService")
        if one["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling")
    }
    for pod in release.pods:
        account = str(pod.spec.get("serviceAccountName", ""))
        needs = _needs(pod)
        used.setdefault(account, set()).update(needs)
        yield from _account(pod)
        # KubeRay binds what Ray's autoscaler, which it puts into the head's pod, may do.
        yield from _token(pod, bool(needs) or pod.owner in scaled)
        for right in sorted(needs - bound.get(account, set())):
            yield f"{pod.owner} uses {_say(right)}, which {account or 'its account'} may not"
    for account, rights in bound.items():
        for right in sorted(rights - used.get(account, set())):
            yield f"{account} may {_say(right)}, which nothing that runs as it uses"


def _granted(role: Document) -> Iterator[Right]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                yield from ((group, resource, verb) for verb in rule["verbs"])


def _needs(pod: Pod) -> set[Right]:
    found: set[Right] = set()
    for container in pod.containers:
        command = container.get("command", [])
        if command[:2] == ["python", "-m"]:
            found |= USES.get(command[2], frozenset())
    return found


def _account(pod: Pod) -> Iterator[str]:
    """A pod that names none runs as the namespace's default, or as one that an operator makes:
    neither has the identity that an object store knows."""
    if not pod.labels.get("plinth.dev/trial") and not pod.spec.get("serviceAccountName"):
        yield f"{pod.owner} names no service account, so it has no identity at an object store"


def _token(pod: Pod, needed: bool) -> Iterator[str]:
    """A token is mounted where one is used, and nowhere else."""
    mounted = pod.spec.get("automountServiceAccountToken", True)
    if mounted and not needed:
        yield f"{pod.owner} gets a token for the API server, which it does not speak to"
    if needed and not mounted:
        yield f"{pod.owner} speaks to the API server and gets no token"


def _say(right: Right) -> str:
    group, resource, verb = right
    return f"{verb} {resource}{f'.{group}' if group else ''}"


def _container_rights(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield f"{pod.owner} may run as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{pod.owner} has no seccomp profile"
    for flag in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(flag):
            yield f"{pod.owner} uses {flag}"
    for container in [*pod.containers, *pod.spec.get("initContainers", [])]:
        name, own = f"{pod.owner}: {container['name']}", container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{name} may gain privileges"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name} keeps capabilities"
        if not own.get("readOnlyRootFilesystem"):
            yield f"{name} may write to its root file system"
        resources = container.get("resources", {})
        if "memory" not in resources.get("limits", {}):
            yield f"{name} has no limit of memory"
        if not {"cpu", "memory"} <= set(resources.get("requests", {})):
            yield f"{name} does not request CPU and memory"
        for variable in container.get("env", []):
            secret = any(word in variable["name"] for word in ("TOKEN", "SECRET", "PASSWORD"))
            if secret and "value" in variable and not variable["value"].startswith("$("):
                yield f"{name} holds {variable['name']} in plain text"


def _edges(release: Release) -> Iterator[str]:
    """The network lets through what the platform needs, and not what it doesn't."""
    by = {pod.component: pod for pod in release.pods}
    gateway, redis = by["gateway"], by.get("redis")
    stages = [pod for pod in release.ray_pods if "grpc" in pod.ports()]
    trials = [pod for pod in release.pods if pod.labels.get("plinth.dev/trial")]
    needed: list[tuple[Pod, Pod, int]] = []
    needed += [(gateway, pod, pod.ports()["grpc"]) for pod in stages]
    needed += [
        (one, two, port)
        for one in release.ray_pods
        for two in stages
        for port in (two.ports()["grpc"], two.ports()["raylet"], 40_000)
    ]
    needed += [(trial, gateway, port) for trial in trials for port in gateway.ports().values()]
    if redis:
        clients = [gateway, *release.ray_pods, *trials]
        needed += [(client, redis, redis.ports()["redis"]) for client in clients]
    for source, target, port in needed:
        if not allowed(release, source, target, port):
            yield f"the network stops {source.component} on its way to {target.component}:{port}"
    barred: list[tuple[Pod, Pod, int]] = []
    for pod in stages:
        inner = [port for name, port in pod.ports().items() if name != "grpc"]
        barred += [(gateway, pod, port) for port in inner]
        barred += [(trial, pod, port) for trial in trials for port in pod.ports().values()]
        barred += [
            (pod, gateway, port) for port in gateway.ports().values() if _doors_closed(release)
        ]
        if redis:
            barred += [(redis, pod, port) for port in pod.ports().values()]
    for source, target, port in barred:
        if allowed(release, source, target, port):
            yield f"the network lets {source.component} reach {target.component}:{port} for nothing"


def _doors_closed(release: Release) -> bool:
    """Whether only named clients reach the gateway."""
    for policy in release.of("NetworkPolicy"):
        if policy["metadata"]["name"].endswith("-clients-to-gateway"):
            return all("from" in rule for rule in policy["spec"]["ingress"])
    return False


def allowed(release: Release, source: Pod, target: Pod, port: int) -> bool:
    """Whether Kubernetes' rules let a connection through: egress there, and ingress here."""
    return _passes(release, source, target, port, "Egress") and _passes(
        release, target, source, port, "Ingress"
    )


def _passes(release: Release, own: Pod, other: Pod, port: int, way: str) -> bool:
    rules_key, peer_key = ("egress", "to") if way == "Egress" else ("ingress", "from")
    listener = other if way == "Egress" else own
    closed = False
    for policy in release.of("NetworkPolicy"):
        spec = policy["spec"]
        if way not in spec["policyTypes"] or not own.matches(spec["podSelector"]):
            continue
        closed = True
        for rule in spec.get(rules_key, []):
            peers, ports = rule.get(peer_key), rule.get("ports")
            by_port = ports is None or any(_is_port(listener, one, port) for one in ports)
            if by_port and (peers is None or any(_is_peer(one, other) for one in peers)):
                return True
    return not closed


def _is_port(listener: Pod, rule: Mapping[str, Any], port: int) -> bool:
    if rule.get("protocol", "TCP") != "TCP":
        return False
    wanted = rule["port"]
    return listener.ports().get(wanted) == port if isinstance(wanted, str) else wanted == port


def _is_peer(peer: Mapping[str, Any], pod: Pod) -> bool:
    """Pods of this namespace; a selector of namespaces by label means others'."""
    if "namespaceSelector" in peer:
        return peer["namespaceSelector"] == {} and pod.matches(peer.get("podSelector", {}))
    return "podSelector" in peer and pod.matches(peer["podSelector"])
