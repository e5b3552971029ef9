"""Events of a release's own objects, and of nobody else's: a name that begins alike is another
release's (`plinth` and `plinth-b`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime

from plinth.cluster.kubernetes_ops.api import Json
from plinth.cluster.kubernetes_ops.release import Release

# Of a ReplicaSet, and of a pod that one makes: the letters of Kubernetes' random names, which spell
# no word, such as the `inference` in another release's plinth-gateway-inference-0.
_HASH = "[bcdfghjklmnpqrstvwxz2456789]+"


def of_release(release: Release, pods: Iterable[Json], events: Iterable[Json]) -> list[Json]:
    """Those of `events` that are about the release, newest first. pods: its own."""
    names = {pod["metadata"]["name"] for pod in pods}
    owned = _owned(release)
    own = [
        event
        for event in events
        if involved(event) in names or owned(str(event["involvedObject"].get("kind", "")), event)
    ]
    return sorted(own, key=when, reverse=True)


def of_makers(release: Release, component: str, events: Iterable[Json]) -> list[Json]:
    """Those of `events` that are about what makes the pods of a component: its Deployment and
    ReplicaSets, its StatefulSet, or KubeRay's objects, which make all pods of Ray."""
    own = {"Deployment", "ReplicaSet"} if component == "gateway" else {"StatefulSet"}
    name = f"{release.fullname}-{component}"
    if component != "gateway" and component not in release.sets:
        own, name = {"RayService", "RayCluster"}, ""
    return [
        event
        for event in events
        if event["involvedObject"].get("kind") in own
        and (not name or re.fullmatch(f"{re.escape(name)}(-{_HASH})?", involved(event)))
    ]


def involved(event: Json) -> str:
    """Name of the object that an event is about."""
    return str(event.get("involvedObject", {}).get("name", ""))


def told(event: Json) -> str:
    """ "FailedCreate: create Pod … failed", in one line."""
    return f"{event.get('reason', '')}: {event.get('message', '')}".strip()[:300]


def when(event: Json) -> str:
    """Its newest time, RFC 3339; empty where it has none."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or "")


def time_of(event: Json) -> datetime | None:
    text = when(event)
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def _owned(release: Release) -> Callable[[str, Json], bool]:
    """Whether an object of the release is (or was) called so, by its kind."""
    full = re.escape(release.fullname)
    parts = "|".join(re.escape(part) for part in release.components)
    sets = "|".join(re.escape(one) for one in release.sets) or "(?!)"
    clusters = "|".join(re.escape(one) for one in release.ray_clusters) or "(?!)"
    claims = "|".join(re.escape(one) for one in release.claims) or "(?!)"
    pods = (
        f"{full}-gateway-{_HASH}-{_HASH}",
        rf"{full}-({sets})-\d+",
        f"({clusters})-.+",
    )
    names = {
        "Pod": "|".join(pods),
        "StatefulSet": f"{full}-({sets})",
        "Deployment": f"{full}-gateway",
        "RayService": full,  # a release plinth-head has one that is called like plinth's head
        "ServiceAccount": full,
        "ReplicaSet": f"{full}-gateway-{_HASH}",
        "RayCluster": clusters,
        "PersistentVolumeClaim": claims,
        # Of cert-manager's, and what it makes of one.
        "Certificate": f"{full}-({parts}|reconciler)-tls",
        "CertificateRequest": rf"{full}-({parts}|reconciler)-tls-\d+",
    }
    other = f"{full}-({parts}|config|secrets|metrics)"
    patterns = {kind: re.compile(pattern) for kind, pattern in names.items()}
    rest = re.compile(other)
    return lambda kind, event: bool(patterns.get(kind, rest).fullmatch(involved(event)))
