"""Checks of what Ray and its operator want beyond any schema, each with the place that says so.

KubeRay: ray-operator/controllers/ray of v1.6.2, and seen with its operator on Kubernetes 1.36.
"""

from __future__ import annotations

from collections.abc import Iterator

import rendering
from release import Document, Release, title

# KubeRay appends up to some 16 characters to a RayService's name for its clusters' pods.
RAY_NAME_LIMIT = 47
# With the autoscaler on it takes the last 50 characters of the head's account, and another first
# one where that is no letter (utils.CheckName): some other account, or none.
ACCOUNT_NAME_LIMIT = 50
STORAGE = "RAY_external_storage_namespace"


def check(release: Release) -> Iterator[str]:
    """Everything about Ray's own rules."""
    for one in release.of("RayService"):
        yield from _service(one)
        yield from _head(one)
    for pod in release.ray_pods:
        if pod.owner.startswith("StatefulSet/") and pod.component == "head":
            yield from _kept_apart(pod.owner, _variables(pod.main))


def _variables(container: Document) -> dict[str, str]:
    """Variables of a container; "" for what another object says."""
    return {one["name"]: str(one.get("value", "")) for one in container.get("env", [])}


def _service(service: Document) -> Iterator[str]:
    """What KubeRay's operator refuses beside its schema (utils/validation.go)."""
    name, cluster = title(service), service["spec"]["rayClusterConfig"]
    if len(service["metadata"]["name"]) > RAY_NAME_LIMIT:
        yield f"{name}: a RayService's name has at most {RAY_NAME_LIMIT} characters"
    if cluster.get("authOptions", {}).get("mode") == "token" and not cluster.get("rayVersion"):
        yield f"{name}: token authentication needs rayVersion"
    head, groups = cluster["headGroupSpec"], cluster.get("workerGroupSpecs", [])
    names = set(_variables(head["template"]["spec"]["containers"][0]))
    if cluster.get("gcsFaultToleranceOptions"):
        for clash in sorted(names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}):
            yield f"{name}: the head sets {clash}, which gcsFaultToleranceOptions does"
    for group in groups:
        if not 0 <= group["minReplicas"] <= group["maxReplicas"]:
            yield f"{name}: {group['groupName']} wants more pods than it may have"
    if cluster.get("enableInTreeAutoscaling"):
        for template in (head["template"], *(group["template"] for group in groups)):
            if template["spec"].get("restartPolicy") not in (None, "Never"):
                yield f"{name}: Ray's autoscaler v2 wants pods with restartPolicy Never"
    if head["rayStartParams"].get("num-cpus") != "0":
        yield f"{name}: the head takes work (num-cpus is not 0)"


def _head(service: Document) -> Iterator[str]:
    """What the operator takes from the head's template, and does without a word where it lacks."""
    name, spec = title(service), service["spec"]
    template = spec["rayClusterConfig"]["headGroupSpec"]["template"]
    container = template["spec"]["containers"][0]
    ports = [port.get("name", "") for port in container.get("ports", [])]
    # common/service.go, BuildServeService: the error ends each reconciliation before a status.
    if not any(port == "serve" or port.startswith("serve-") for port in ports):
        yield (
            f"{name}: the head's container has no port named serve, so KubeRay makes no Serve "
            "service, the RayService never becomes active and later upgrades are ignored"
        )
    # rayservice_controller.go, updateHeadPodServeLabel: asks the head's proxy, 2 s at most, each
    # time; Serve's proxies are off, and the network policies drop the request.
    if not spec.get("excludeHeadPodFromServeSvc"):
        yield f"{name}: KubeRay would wait for a Serve proxy on the head, and there is none"
    account = str(template["spec"].get("serviceAccountName", ""))
    renamed = len(account) > ACCOUNT_NAME_LIMIT or not account[:1].isalpha()
    if spec["rayClusterConfig"].get("enableInTreeAutoscaling") and account and renamed:
        yield f"{name}: KubeRay would rename the head's account {account}"
    # common/pod.go, configureRedisFT: else it is the RayCluster's UID.
    options = spec["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
    notes = service["metadata"].get("annotations", {})
    if (
        "externalStorageNamespace" in options
        or STORAGE in _variables(container)
        or "ray.io/external-storage-namespace" in notes
    ):
        yield f"{name}: the old and the new cluster of an upgrade would share one GCS storage"


def _kept_apart(owner: str, variables: dict[str, str]) -> Iterator[str]:
    """GCS storage of one Redis is told apart by this name alone, whoever's namespace it is in."""
    if "RAY_REDIS_ADDRESS" not in variables:
        return
    parts = variables.get(STORAGE, "").split("/")
    # Neither a namespace nor an object has a slash in its name, so that no two pairs read alike.
    if len(parts) != 2 or parts[0] != rendering.NAMESPACE:
        yield (
            f"{owner}: the GCS storage {variables.get(STORAGE, '')!r} is not <namespace>/<name>: a "
            "release of the same name in another namespace on the same Redis would share it"
        )
    elif f"{parts[1]}-head" != owner.removeprefix("StatefulSet/"):
        yield f"{owner}: the GCS storage is named after {parts[1]}, another release"
    if "@" in "".join(parts):
        yield f"{owner}: Ray ends at once on a GCS storage with an @"
