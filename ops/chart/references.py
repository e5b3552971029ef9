"""Checks: what a rendered object names must be there. Each yields what is wrong, one line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from release import Document, Pod, Release, title

# A Secret of cert-manager's is there once its Certificate is issued.
TLS_KEYS = frozenset({"tls.crt", "tls.key", "ca.crt"})


def check(release: Release, values: Mapping[str, Any]) -> Iterator[str]:
    """`values`: a Secret, claim or account that they name is the operator's own to bring."""
    given = set(_strings(values))
    yield from _unique(release)
    yield from _selectors(release)
    yield from _service_ports(release)
    yield from _backends(release)
    for pod in release.pods:
        yield from _volumes(pod)
        yield from _named(release, pod, given)
    yield from _unused(release)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, str):
        yield value


def _unique(release: Release) -> Iterator[str]:
    for name, times in Counter(title(one) for one in release.documents).items():
        if times > 1:
            yield f"{name} is rendered {times} times"
    for one in release.documents:
        if "namespace" in one["metadata"]:
            yield f"{title(one)} names a namespace; helm's -n decides it"


def _selectors(release: Release) -> Iterator[str]:
    for one in release.documents:
        spec, kind = one.get("spec", {}), one["kind"]
        if kind == "Service" and not release.picked(spec.get("selector")):
            yield f"{title(one)} selects no pod: {spec.get('selector')}"
        elif kind in {"PodDisruptionBudget", "Deployment", "StatefulSet"}:
            yield from _selected(release, one)
        elif kind == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            if not release.named(target["kind"], target["name"]):
                yield f"{title(one)} scales {target['kind']}/{target['name']}, which is missing"
            for metric in spec["metrics"]:
                about = metric.get("object", {}).get("describedObject")
                if about and not release.named(about["kind"], about["name"]):
                    yield f"{title(one)} asks about {about['kind']}/{about['name']}, not rendered"
        elif kind == "NetworkPolicy":
            yield from _policy(release, one)
    for pod in release.pods:
        for spread in pod.spec.get("topologySpreadConstraints", []):
            if not pod.matches(spread["labelSelector"]):
                yield f"{pod.owner} spreads other pods than its own: {spread['labelSelector']}"


def _selected(release: Release, one: Document) -> Iterator[str]:
    spec, kind = one["spec"], one["kind"]
    picked = [pod for pod in release.pods if pod.matches(spec["selector"])]
    if not picked:
        yield f"{title(one)} selects no pod: {spec['selector']}"
    if len({pod.component for pod in picked}) > 1:
        yield f"{title(one)} selects pods of several services"
    if kind != "PodDisruptionBudget" and any(pod.owner != title(one) for pod in picked):
        yield f"{title(one)} does not select its own pods alone"
    if kind == "StatefulSet" and not release.named("Service", spec["serviceName"]):
        yield f"{title(one)} is governed by the Service {spec['serviceName']}, which is missing"


def _policy(release: Release, policy: Document) -> Iterator[str]:
    """Every end of an edge exists, and listens on the edge's port."""
    spec = policy["spec"]
    own = [pod for pod in release.pods if pod.matches(spec["podSelector"])]
    if not own:
        yield f"{title(policy)} applies to no pod: {spec['podSelector']}"
    for way, far in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(way, []):
            ends = own if way == "ingress" else []
            for peer in rule.get(far, []):
                if "podSelector" not in peer or "namespaceSelector" in peer:
                    continue
                picked = [pod for pod in release.pods if pod.matches(peer["podSelector"])]
                if not picked:
                    yield f"{title(policy)} names pods that are not there: {peer['podSelector']}"
                ends = own if way == "ingress" else [*ends, *picked]
            for port in rule.get("ports", []):
                if ends and not any(pod.has_port(port["port"]) for pod in ends):
                    yield f"{title(policy)}: no pod listens on {port['port']}"


def _service_ports(release: Release) -> Iterator[str]:
    for service in release.of("Service"):
        headless = service["spec"].get("clusterIP") == "None"
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for pod in release.picked(service["spec"].get("selector")):
                if not pod.has_port(target):
                    yield f"{title(service)}: {pod.owner} has no port {target}"
                # No proxy translates a headless one: the caller dials the pod's own port.
                elif headless and pod.ports().get(target, target) != port["port"]:
                    yield f"{title(service)} is headless: {target} is {pod.ports()[target]}"


def _backends(release: Release) -> Iterator[str]:
    for ingress in release.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                wanted = path["backend"]["service"]
                service = release.named("Service", wanted["name"])
                names = {p["name"] for p in service["spec"]["ports"]} if service else set()
                if wanted["port"]["name"] not in names:
                    yield f"{title(ingress)}: {wanted['name']} has no port {wanted['port']['name']}"


def _volumes(pod: Pod) -> Iterator[str]:
    there = {volume["name"] for volume in pod.spec.get("volumes", [])}
    there |= {"data"} if pod.component == "redis" else set()  # by volumeClaimTemplates
    used = set()
    for container in [*pod.containers, *pod.spec.get("initContainers", [])]:
        mounts = container.get("volumeMounts", [])
        used |= {mount["name"] for mount in mounts}
        for path, times in Counter(mount["mountPath"] for mount in mounts).items():
            if times > 1:
                yield f"{pod.owner}: {container['name']} mounts {path} {times} times"
        names = [port["name"] for port in container.get("ports", [])]
        for name in {name for name in names if names.count(name) > 1}:
            yield f"{pod.owner}: {container['name']} has two ports {name}"
        if any(len(name) > 15 for name in names):
            yield f"{pod.owner}: a port's name has more than 15 characters"
    for name in sorted(used - there):
        yield f"{pod.owner} mounts the volume {name}, which it does not have"
    for name in sorted(there - used):
        yield f"{pod.owner} has the volume {name}, which nothing mounts"


def _named(release: Release, pod: Pod, given: set[str]) -> Iterator[str]:
    made = {one["spec"]["secretName"] for one in release.of("Certificate")}

    def there(kind: str, name: str, keys: Sequence[str] = ()) -> Iterator[str]:
        found = release.named(kind, name)
        if found is None:
            if name in given or (kind == "Secret" and name in made and set(keys) <= TLS_KEYS):
                return
            yield f"{pod.owner} uses {kind}/{name}, which is neither rendered nor named in values"
            return
        for key in keys:
            if key not in found.get("data", {}):
                yield f"{pod.owner} uses the key {key} of {kind}/{name}, which it does not have"

    account = pod.spec.get("serviceAccountName")
    if account not in (None, "default"):
        yield from there("ServiceAccount", account)
    for volume in pod.spec.get("volumes", []):
        if found := volume.get("configMap"):
            paths = [m["subPath"] for m in _mounts(pod, volume["name"]) if "subPath" in m]
            yield from there("ConfigMap", found["name"], paths)
        if found := volume.get("secret"):
            yield from there(
                "Secret", found["secretName"], [i["key"] for i in found.get("items", [])]
            )
        if found := volume.get("persistentVolumeClaim"):
            yield from there("PersistentVolumeClaim", found["claimName"])
    for container in [*pod.containers, *pod.spec.get("initContainers", [])]:
        for variable in container.get("env", []):
            for kind, key in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
                if found := variable.get("valueFrom", {}).get(key):
                    yield from there(kind, found["name"], [found["key"]])


def _mounts(pod: Pod, volume: str) -> Iterator[Document]:
    for container in [*pod.containers, *pod.spec.get("initContainers", [])]:
        yield from (m for m in container.get("volumeMounts", []) if m["name"] == volume)


def _unused(release: Release) -> Iterator[str]:
    """What nobody mounts would be a leftover of a change."""
    used = {
        found.get("name") or found.get("claimName")
        for pod in release.pods
        for volume in pod.spec.get("volumes", [])
        for found in (volume.get("configMap"), volume.get("persistentVolumeClaim"))
        if found
    }
    for kind in ("ConfigMap", "PersistentVolumeClaim"):
        for one in release.of(kind):
            labels = one["metadata"].get("labels") or {}
            # Dashboards are read by Grafana's sidecar, through the API; `extraObjects` by anybody.
            read = labels.get("app.kubernetes.io/component") == "monitoring"
            extra = labels.get("app.kubernetes.io/part-of") != "plinth"
            if one["metadata"]["name"] not in used and not read and not extra:
                yield f"{title(one)} is used by no pod"
    accounts = {pod.spec.get("serviceAccountName") for pod in release.pods}
    for one in release.of("ServiceAccount"):
        if one["metadata"]["name"] not in accounts:
            yield f"{title(one)} is used by no pod"
