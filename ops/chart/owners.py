"""Checks: each field has one owner, the chart or a controller, whichever Helm applies it.

Written from what an API server keeps in `managedFields`
(kubernetes.io/docs/reference/using-api/server-side-apply) and from Helm's sources: Helm 3 patches
the difference of two manifests, Helm 4 applies one server-side, and is refused where another owner
has another value; both restore a stored manifest at `helm rollback`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from release import Release, title

# By which `plinth k8s` finds the chart among the owners of an object.
CHARTS_LABEL = "helm.sh/chart"
# On what an autoscaler counts, while no manifest has said a number: see templates/_replicas.tpl.
NOTE, LEFT_OUT = "plinth.dev/replicas", "autoscaler"


def check(release: Release) -> Iterator[str]:
    """Everything about owners, of a rendering without a cluster to look into (an install)."""
    scalers = {
        (ref["kind"], ref["name"]): title(scaler)
        for scaler in release.of("HorizontalPodAutoscaler")
        for ref in [scaler["spec"]["scaleTargetRef"]]
    }
    counted = Counter(
        (ref["kind"], ref["name"])
        for scaler in release.of("HorizontalPodAutoscaler")
        for ref in [scaler["spec"]["scaleTargetRef"]]
    )
    for (kind, name), times in counted.items():
        if times > 1:
            yield f"{kind}/{name} is counted by {times} autoscalers"
    for one in [*release.of("Deployment"), *release.of("StatefulSet")]:
        scaler = scalers.get((one["kind"], one["metadata"]["name"]))
        noted = (one["metadata"].get("annotations") or {}).get(NOTE) == LEFT_OUT
        says = "replicas" in one["spec"]
        if scaler and says:
            yield f"{title(one)} has a number of its own, and {scaler} another"
        elif scaler and not noted:
            yield (
                f"{title(one)} leaves its number to {scaler} and does not note it ({NOTE}: "
                f"{LEFT_OUT}): an upgrade by Helm 3 would say one, and a rollback set it"
            )
        elif not scaler and not says:
            yield f"{title(one)} says no number of pods, and nobody else does"
        elif not scaler and noted:
            yield f"{title(one)} says a number, and notes that an autoscaler does"
    for kind in ("Deployment", "StatefulSet", "RayService"):
        for one in release.of(kind):
            if CHARTS_LABEL not in one["metadata"]["labels"]:
                yield f"{title(one)} has no {CHARTS_LABEL}, by which `plinth k8s` knows its owner"
