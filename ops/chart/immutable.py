"""What Kubernetes lets nobody change of an object, and what holds data: between two renderings.

By the API server's validation of updates (pkg/apis/*/validation): of a StatefulSet's spec all but a
few fields, a claim's spec but for more storage, a Deployment's selector, a Service's address, a
binding's role. Its words are those of Kubernetes 1.36's source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from release import Document, Release, title

# Of a StatefulSet's spec, what may change.
_FREE = frozenset(
    {
        *("replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit"),
        *("persistentVolumeClaimRetentionPolicy", "minReadySeconds"),
    }
)
REFUSALS = {
    "StatefulSet": "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', "
    "'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', "
    "'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
    "PersistentVolumeClaim": "spec: Forbidden: spec is immutable after creation except "
    "resources.requests and volumeAttributesClassName for bound claims",
    "Deployment": "spec.selector: Invalid value: field is immutable",
    "Service": "spec.clusterIPs[0]: Invalid value: may not change once set",
    "RoleBinding": "roleRef: Invalid value: cannot change roleRef",
}
_UNITS = {"": 1.0, "m": 1e-3} | {
    f"{letter}{i}": float(base**power)
    for base, i in ((1000, ""), (1024, "i"))
    for power, letter in enumerate(("k" if base == 1000 else "K", *"MGTPE"), 1)
}


def fixed(one: Document) -> Any:
    """What of the object can't be changed; None where all can. A claim's size, which grows, is left
    out."""
    kind, spec = one["kind"], one.get("spec") or {}
    if kind == "StatefulSet":
        return {key: value for key, value in spec.items() if key not in _FREE}
    if kind == "PersistentVolumeClaim":
        free = {"resources", "volumeAttributesClassName", "volumeName"}
        return {key: value for key, value in spec.items() if key not in free}
    if kind == "Deployment":
        return spec["selector"]
    if kind == "Service":
        return spec.get("clusterIP") == "None"
    return one.get("roleRef")


def size_of(claim: Document) -> float:
    """Bytes that a claim, or a template of one, asks for."""
    return quantity(claim["spec"]["resources"]["requests"]["storage"])


def quantity(value: Any) -> float:
    """A quantity as Kubernetes writes it: 8, "8Gi", "0.5Ti"."""
    text = str(value)
    number = text.rstrip("".join("mkKMGTPEi"))
    return float(number) * _UNITS[text[len(number) :]]


def refusal(before: Document, after: Document) -> str:
    """What the API server says of this update; empty: it takes it."""
    kind = after["kind"]
    if fixed(before) != fixed(after):
        return REFUSALS[kind]
    if kind == "PersistentVolumeClaim" and size_of(after) < size_of(before):
        return (
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
        )
    return ""


def changed(before: Release, after: Release) -> Iterator[str]:
    """What of a release that is there an upgrade to another rendering would be refused for, or
    leave without its data. Growing a claim counts: not every StorageClass lets one grow."""
    for one in before.documents:
        other = after.named(one["kind"], one["metadata"]["name"])
        if other is None:
            if one["kind"] == "PersistentVolumeClaim" or (one.get("spec") or {}).get(
                "volumeClaimTemplates"
            ):
                yield f"{title(one)} is gone, and its data with it"
        elif fixed(one) != fixed(other):
            yield f"{title(one)}: {REFUSALS[one['kind']]}"
        elif one["kind"] == "PersistentVolumeClaim" and size_of(one) != size_of(other):
            yield f"{title(one)}: its size"
    for note in ("plinth.dev/redis", "plinth.dev/store"):
        held = [
            config["metadata"]["annotations"][note]
            for release in (before, after)
            for config in release.of("ConfigMap")
            if note in (config["metadata"].get("annotations") or {})
        ]
        if len(set(held)) != 1:
            yield f"{note} is another one: {', then '.join(held)}"
