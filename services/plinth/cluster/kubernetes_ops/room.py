"""How many shards the inference pods of a release have room for: one each."""

from __future__ import annotations

from collections.abc import Iterable

from plinth.cluster.kubernetes_ops.release import Release
from plinth.shared.errors import FailedPrecondition
from plinth.v1 import coordinator_pb2

STAGE = "inference"


def most_shards(release: Release) -> int:
    """Pods that there are, or that Ray's autoscaler may start."""
    if release.mode == "static":
        return int(release.sets[STAGE]["spec"].get("replicas", 1)) if STAGE in release.sets else 0
    group = release.groups.get(STAGE, {})
    config = release.rayservice["spec"]["rayClusterConfig"]
    scaled = config.get("enableInTreeAutoscaling", False)
    return int(group.get("maxReplicas" if scaled else "replicas") or 0)


def shards_now(deployment: coordinator_pb2.Deployment) -> int:
    """Those that it must have; where load decides, those that it has if they are more."""
    if not deployment.max_shards:
        return deployment.shards
    return max(deployment.shards, min(deployment.ready_shards, deployment.max_shards))


def check_room(
    wanted: Iterable[coordinator_pb2.Deployment], release: Release, *, pods: int, more: int = 0
) -> None:
    """FailedPrecondition unless `pods` hold all wanted shards and `more`."""
    shards = {one.name: shards_now(one) for one in wanted}
    total = sum(shards.values()) + more
    if total > pods:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(shards.items()))
        extra = f" and {more} more" if more else ""
        raise FailedPrecondition(
            f"{total} shards ({listed}{extra}) need {total} inference pods, and {release.name} has "
            f"room for {pods}: first `plinth k8s scale inference {total}`, or fewer shards",
            reason="NO_ROOM",
        )
