"""May you install, upgrade and uninstall the chart? Asked of the API server, kind by kind.

`KINDS` holds every kind that the chart's templates make, `LOOKS` what else they look at, which its
tests compare: where Helm is forbidden a look, the install ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from plinth.cluster.finding import Finding
from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.outcome import kubectl

# Helm makes, looks at, changes and deletes each.
VERBS = ("create", "get", "patch", "delete")
# Its own records are Secrets, and it looks for the chart's other releases by ConfigMaps.
_MORE = {"secrets": ("list", "update"), "configmaps": ("list",)}


@dataclass(frozen=True)
class Made:
    """A kind that the chart makes. option: of values, which it takes; empty: every release has it,
    or with `mode` every release in that mode of Ray. default: the option is on by default."""

    group: str
    resource: str
    option: str = ""
    default: bool = False
    mode: str = ""


_RBAC, _NETWORK = "rbac.authorization.k8s.io", "networking.k8s.io"
_ROUTES, _MONITORS = "gateway.networking.k8s.io", "monitoring.coreos.com"
KINDS: Final[dict[str, Made]] = {
    "ConfigMap": Made("", "configmaps"),
    "Service": Made("", "services"),
    "Deployment": Made("apps", "deployments"),
    "RayService": Made("ray.io", "rayservices", mode="rayservice"),
    "Secret": Made("", "secrets", "secrets.existingSecret", default=True),
    "ServiceAccount": Made("", "serviceaccounts", "serviceAccount.create", default=True),
    "StatefulSet": Made("apps", "statefulsets", "redis.enabled", default=True),
    "PersistentVolumeClaim": Made("", "persistentvolumeclaims", "store.persistence", default=True),
    "PodDisruptionBudget": Made("policy", "poddisruptionbudgets", "defaults.pdb", default=True),
    "NetworkPolicy": Made(_NETWORK, "networkpolicies", "networkPolicy.enabled", default=True),
    "Pod": Made("", "pods", "tests"),
    "Role": Made(_RBAC, "roles", "tests.chaos"),
    "RoleBinding": Made(_RBAC, "rolebindings", "tests.chaos"),
    "HorizontalPodAutoscaler": Made("autoscaling", "horizontalpodautoscalers", "autoscaling"),
    "Ingress": Made(_NETWORK, "ingresses", "gateway.ingress"),
    "HTTPRoute": Made(_ROUTES, "httproutes", "gateway"),
    "GRPCRoute": Made(_ROUTES, "grpcroutes", "gateway"),
    "Certificate": Made("cert-manager.io", "certificates", "tls.certManager"),
    "ServiceMonitor": Made(_MONITORS, "servicemonitors", "monitoring"),
    "PodMonitor": Made(_MONITORS, "podmonitors", "monitoring"),
    "PrometheusRule": Made(_MONITORS, "prometheusrules", "monitoring.rules"),
}
# Secrets of others (a bucket's, a password's) are looked at too, by the same right as its own.
LOOKS: Final[dict[str, Made]] = {"Namespace": Made("", "namespaces", "cache.type=hostPath")}


def needed(mode: str, *, cert_manager: bool) -> set[str]:
    """Kinds that an install by default makes, and those that are asked for."""
    found = {kind for kind, one in KINDS.items() if one.default or not one.option}
    return {kind for kind in found if KINDS[kind].mode in {"", mode}} | (
        {"Certificate"} if cert_manager else set()
    )


def check_rights(api: Api, *, mode: str, cert_manager: bool) -> Iterator[Finding]:
    """One finding of what the defaults (and what is asked for) make, one of what options make.

    mode: of Ray. cert_manager: its certificates are wanted.
    """
    asked = needed(mode, cert_manager=cert_manager)
    options = {kind for kind, one in KINDS.items() if one.option} - asked
    lacking = _lacking(api, asked)
    yield Finding(
        "rights",
        "fail" if lacking else "ok",
        f"may not {'; '.join(lacking)} in {api.namespace}"
        if lacking
        else f"may make, change and delete what the chart makes in {api.namespace}",
        f"{_grant(api)} (ray.io and cert-manager.io need rules of their own where admin lacks "
        "them); or switch off what makes them, such as serviceAccount.create"
        if lacking
        else "",
    )
    lacking = _lacking(api, options)
    for kind, made in LOOKS.items():
        if not _may(api, "get", made.group, made.resource, api.namespace):
            lacking.append(
                f"get {made.resource} {api.namespace} ({made.option} looks at the {kind})"
            )
    yield Finding(
        "rights for options",
        "warn" if lacking else "ok",
        f"may not {'; '.join(lacking)} in {api.namespace}"
        if lacking
        else f"may make what its options make in {api.namespace}",
        "only an install whose values say so takes them" if lacking else "",
    )


def _lacking(api: Api, kinds: set[str]) -> list[str]:
    """["create, patch serviceaccounts", …], in the table's order."""
    found = []
    for kind in (kind for kind in KINDS if kind in kinds):
        made = KINDS[kind]
        verbs = (*VERBS, *_MORE.get(made.resource, ()))
        refused = [v for v in verbs if not _may(api, v, made.group, made.resource)]
        if refused:
            found.append(f"{', '.join(refused)} {made.resource}")
    return found


def _may(api: Api, verb: str, group: str, resource: str, name: str = "") -> bool:
    attributes = {"namespace": api.namespace, "verb": verb, "group": group, "resource": resource}
    attributes |= {"name": name} if name else {}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return bool(api.call("may I", body=body)["status"].get("allowed"))


def _grant(api: Api) -> str:
    words = ("create", "rolebinding", "plinth-installer", "--clusterrole=admin", "--user=YOU")
    return kubectl(api.namespace, *words)
