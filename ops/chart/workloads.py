"""Checks of what a cluster's own rules make of the pods: PodSecurity, taints, evictions, and
whether a changed Secret reaches who reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from immutable import quantity
from release import Document, Pod, Release, title

# PodSecurity `restricted` (kubernetes.io/docs/concepts/security/pod-security-standards).
VOLUMES = frozenset(
    {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
        *("persistentVolumeClaim", "projected", "secret"),
    }
)
# Taints of GPU nodes are named after the device plugin's resource.
GPU_SUFFIX = "/gpu"


def check(release: Release, values: Mapping[str, Any]) -> Iterator[str]:
    """Everything about the rules of a cluster. `values`: what is asked for there is allowed."""
    on_the_node = values["cache"]["type"] == "hostPath"
    for pod in release.pods:
        yield from _volumes(pod, {"cache"} if on_the_node else set())
        yield from _taints(pod)
        yield from _secrets(pod)
        yield from _disk(pod)
    for budget in release.of("PodDisruptionBudget"):
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{title(budget)} keeps a node from being drained for pods that are not ready"


def _containers(pod: Pod) -> list[Document]:
    return [*pod.containers, *pod.spec.get("initContainers", [])]


def _volumes(pod: Pod, asked: set[str]) -> Iterator[str]:
    for volume in pod.spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES and volume["name"] not in asked:
            told = f"{volume['name']} ({', '.join(sorted(kinds - VOLUMES))})"
            yield f"{pod.owner}: PodSecurity restricted refuses the volume {told}"


def _disk(pod: Pod) -> Iterator[str]:
    """What a pod takes of its node's disk is asked for and bounded, and its limit, which counts its
    volumes too, leaves room for what they may hold (kubernetes.io/docs/concepts/configuration/
    manage-resources-containers, Local ephemeral storage)."""
    most = 0.0
    for container in _containers(pod):
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if "ephemeral-storage" not in resources.get(kind, {}):
                yield f"{pod.owner}: {container['name']} has no {kind} of ephemeral-storage"
        if container in pod.containers:
            most += quantity(resources.get("limits", {}).get("ephemeral-storage", 0))
    held = sum(
        quantity(volume["emptyDir"]["sizeLimit"])
        for volume in pod.spec.get("volumes", [])
        if "sizeLimit" in volume.get("emptyDir", {})
        and volume["emptyDir"].get("medium") != "Memory"
    )
    if held > most:
        yield f"{pod.owner} is evicted before its volumes are full: they may hold {held:.0f} bytes"


def _taints(pod: Pod) -> Iterator[str]:
    wanted = {
        name
        for container in _containers(pod)
        for name in container.get("resources", {}).get("limits", {})
        if name.endswith(GPU_SUFFIX)
    }
    for one in pod.spec.get("tolerations", []):
        key = str(one.get("key", GPU_SUFFIX))  # none: each taint
        if key.endswith(GPU_SUFFIX) and not wanted:
            yield f"{pod.owner} has no GPU and tolerates the taint {key} of nodes that do"


def _secrets(pod: Pod) -> Iterator[str]:
    """A variable is read once; a pod whose template stays the same is never started anew."""
    reads = any(
        "secretKeyRef" in variable.get("valueFrom", {})
        for container in _containers(pod)
        for variable in container.get("env", [])
    )
    trial = pod.labels.get("plinth.dev/trial")  # made anew each time
    if reads and not trial and "checksum/secrets" not in pod.annotations:
        yield f"{pod.owner} reads a Secret and would not follow its change: no checksum/secrets"
