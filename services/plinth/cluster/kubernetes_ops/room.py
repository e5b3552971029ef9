"""How many shards the inference pods of a release have room for: one each."""

from __future__ import annotations

from collections.abc import Iterable

from plinth.cluster.kubernetes_ops.release import Release
from plinth.shared.errors import FailedPrecondition
from plinth.v1 import deployments_pb2

STAGE = "inference"
# The chart's word, on the StatefulSet, of how many its HorizontalPodAutoscaler may make.
MAX_PODS = "plinth.dev/max-pods"


def most_shards(release: Release) -> int:
    """Pods that there are, or that an autoscaler may start: Ray's, or the stage's own."""
    if release.mode == "static":
        if STAGE not in release.sets:
            return 0
        found = release.sets[STAGE]
        most = found["metadata"].get("annotations", {}).get(MAX_PODS)
        return int(most or found["spec"].get("replicas", 1))
    group = release.groups.get(STAGE, {})
    config = release.rayservice["spec"]["rayClusterConfig"]
    scaled = config.get("enableInTreeAutoscaling", False)
    return int(group.get("maxReplicas" if scaled else "replicas") or 0)


def served_name(deployment: deployments_pb2.Deployment) -> str:
    """What clients ask for."""
    return deployment.name.rpartition("/")[2]


def shards_now(deployment: deployments_pb2.Deployment) -> int:
    """Those that it must have; where load decides, those that it has if they are more."""
    least, most = deployment.spec.shards, deployment.spec.max_shards
    return max(least, min(deployment.status.ready_shards, most)) if most else least


def check_room(
    wanted: Iterable[deployments_pb2.Deployment], release: Release, *, pods: int, more: int = 0
) -> None:
    """FailedPrecondition unless `pods` hold all wanted shards and `more`."""
    shards = {served_name(one): shards_now(one) for one in wanted}
    total = sum(shards.values()) + more
    if total > pods:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(shards.items()))
        extra = f" and {more} more" if more else ""
        raise FailedPrecondition(
            f"{total} shards ({listed}{extra}) need {total} inference pods, and {release.name} has "
            f"room for {pods}: first `plinth k8s scale inference {total}`, or fewer shards",
            reason="NO_ROOM",
        )
