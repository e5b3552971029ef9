"""Every call to the Kubernetes API that operations make, as a Role would name it.

What is not in `CALLS` can't be made, so a refusal always knows the verb that was missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_CORE = "/api/v1/namespaces/{namespace}"
_APPS = "/apis/apps/v1/namespaces/{namespace}"
_RAY = "/apis/ray.io/v1/namespaces/{namespace}"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True)
class Call:
    """One kind of call. group, resource, verb: as in a Role's rule (verbs with
    commas between). path: of the API server, with
    what varies in braces. content: type of the body, where there is one."""

    group: str
    resource: str
    verb: str
    method: str
    path: str
    content: str = "application/json"

    @property
    def namespaced(self) -> bool:
        return "{namespace}" in self.path


CALLS: Final[dict[str, Call]] = {
    "version": Call("", "", "", "GET", "/version"),
    "group": Call("", "", "", "GET", "/apis/{group}/{version}"),
    "may I": Call(
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "create",
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    ),
    "list pods": Call("", "pods", "list", "GET", f"{_CORE}/pods"),
    "watch pods": Call("", "pods", "watch", "GET", f"{_CORE}/pods"),
    "get pod": Call("", "pods", "get", "GET", f"{_CORE}/pods/{{name}}"),
    "read log": Call("", "pods/log", "get", "GET", f"{_CORE}/pods/{{name}}/log"),
    # A websocket is authorised as what it looks like (GET), and by newer servers as "create" too.
    "exec": Call("", "pods/exec", "get,create", "GET", f"{_CORE}/pods/{{name}}/exec"),
    "forward": Call(
        "", "pods/portforward", "get,create", "GET", f"{_CORE}/pods/{{name}}/portforward"
    ),
    "evict": Call("", "pods/eviction", "create", "POST", f"{_CORE}/pods/{{name}}/eviction"),
    "list events": Call("", "events", "list", "GET", f"{_CORE}/events"),
    "list configmaps": Call("", "configmaps", "list", "GET", f"{_CORE}/configmaps"),
    "list secrets": Call("", "secrets", "list", "GET", f"{_CORE}/secrets"),
    "list quotas": Call("", "resourcequotas", "list", "GET", f"{_CORE}/resourcequotas"),
    "list claims": Call(
        "", "persistentvolumeclaims", "list", "GET", f"{_CORE}/persistentvolumeclaims"
    ),
    "list nodes": Call("", "nodes", "list", "GET", "/api/v1/nodes"),
    "cordon": Call("", "nodes", "patch", "PATCH", "/api/v1/nodes/{name}", MERGE),
    "list deployments": Call("apps", "deployments", "list", "GET", f"{_APPS}/deployments"),
    "list statefulsets": Call("apps", "statefulsets", "list", "GET", f"{_APPS}/statefulsets"),
    "get deployment": Call("apps", "deployments", "get", "GET", f"{_APPS}/deployments/{{name}}"),
    "patch deployment": Call(
        "apps", "deployments", "patch", "PATCH", f"{_APPS}/deployments/{{name}}", JSON_PATCH
    ),
    "patch deployment scale": Call(
        "apps", "deployments/scale", "patch", "PATCH", f"{_APPS}/deployments/{{name}}/scale", MERGE
    ),
    "get statefulset": Call("apps", "statefulsets", "get", "GET", f"{_APPS}/statefulsets/{{name}}"),
    "patch statefulset": Call(
        "apps", "statefulsets", "patch", "PATCH", f"{_APPS}/statefulsets/{{name}}", JSON_PATCH
    ),
    "patch statefulset scale": Call(
        "apps",
        "statefulsets/scale",
        "patch",
        "PATCH",
        f"{_APPS}/statefulsets/{{name}}/scale",
        MERGE,
    ),
    "get autoscaler": Call(
        "autoscaling",
        "horizontalpodautoscalers",
        "get",
        "GET",
        "/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers/{name}",
    ),
    "list budgets": Call(
        "policy",
        "poddisruptionbudgets",
        "list",
        "GET",
        "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    ),
    "list storage classes": Call(
        "storage.k8s.io",
        "storageclasses",
        "list",
        "GET",
        "/apis/storage.k8s.io/v1/storageclasses",
    ),
    "get rayservice": Call("ray.io", "rayservices", "get", "GET", f"{_RAY}/rayservices/{{name}}"),
    "patch rayservice": Call(
        "ray.io", "rayservices", "patch", "PATCH", f"{_RAY}/rayservices/{{name}}", JSON_PATCH
    ),
    "get raycluster": Call("ray.io", "rayclusters", "get", "GET", f"{_RAY}/rayclusters/{{name}}"),
    "patch raycluster": Call(
        "ray.io", "rayclusters", "patch", "PATCH", f"{_RAY}/rayclusters/{{name}}", JSON_PATCH
    ),
}
