"""`plinth k8s doctor` before an install."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kube_api import NAMESPACE, KubeApi
from kube_calls import Reply
from kube_cluster import error_of, levels, of, plinth_k8s
from kube_release import CORE, static_release
from plinth.cluster.finding import Finding
from plinth.cluster.kubernetes_ops import doctor_before
from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.doctor_before import Plan


def node(gpus: str = "0", *, ready: bool = True, **labels: str) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"labels": labels},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "8"} | ({"nvidia.com/gpu": gpus} if gpus != "0" else {}),
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


@pytest.fixture
def prepared(kube: KubeApi) -> KubeApi:
    """A cluster that can take a release with GPUs."""
    kube.groups = {
        "ray.io/v1": ["rayservices", "rayclusters", "rayjobs"],
        "cert-manager.io/v1": ["certificates"],
        "monitoring.coreos.com/v1": ["servicemonitors"],
    }
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    kube.put(
        "/apis/storage.k8s.io/v1/storageclasses/fast",
        {"metadata": {"annotations": default}, "provisioner": "ebs.csi.aws.com"},
    )
    kube.put(
        "/apis/storage.k8s.io/v1/storageclasses/shared",
        {"metadata": {}, "provisioner": "efs.csi.aws.com"},
    )
    kube.put("/api/v1/nodes/a", node("4"))
    kube.put("/api/v1/nodes/b", node())
    return kube


def before(kubeconfig: Path, **plan: Any) -> list[Finding]:
    with Api.open(kubeconfig=kubeconfig) as api:
        return doctor_before.examine(api, Plan(**plan))


def test_a_cluster_that_will_do(prepared: KubeApi, kubeconfig: Path) -> None:
    findings = before(kubeconfig, gpus=4, cert_manager=True)
    assert set(levels(findings).values()) == {"ok"}
    assert of(findings, "kubernetes").found.startswith("v1.33.4 at http://127.0.0.1")
    result = plinth_k8s(kubeconfig, "doctor", "--gpus", "4")
    assert result.exit_code == 0, result.output
    assert "$ kubectl get storageclass" in result.stderr


def test_a_cluster_without_anything(kube: KubeApi, kubeconfig: Path) -> None:
    findings = before(kubeconfig, gpus=1, cert_manager=True)
    assert levels(findings) == {
        "kubernetes": "ok",
        "rights": "ok",
        "rights for options": "ok",
        "kuberay": "fail",
        "cert-manager": "fail",
        "monitoring": "warn",
        "storage": "fail",
        "nodes": "fail",
        "gpus": "fail",
        "quotas": "ok",
        "helm": "ok",
    }
    assert "helm install kuberay-operator" in of(findings, "kuberay").advice
    assert all(finding.advice for finding in findings if finding.level != "ok")
    assert plinth_k8s(kubeconfig, "doctor").exit_code == 1


def test_an_old_server(kube: KubeApi, kubeconfig: Path) -> None:
    kube.version = {"major": "1", "minor": "29+", "gitVersion": "v1.29.1-gke.7"}
    found = of(before(kubeconfig), "kubernetes")
    assert (found.level, found.advice) == (
        "fail",
        "the chart wants 1.30 or newer: upgrade the cluster",
    )


@pytest.mark.parametrize(
    ("verb", "resource", "plan"),
    [
        ("create", "serviceaccounts", {}),
        ("patch", "serviceaccounts", {}),
        ("get", "persistentvolumeclaims", {}),
        ("delete", "services", {}),
        ("list", "secrets", {}),
        ("create", "rayservices", {"mode": "rayservice"}),
        ("create", "certificates", {"cert_manager": True}),
    ],
)
def test_a_right_that_helm_needs(
    prepared: KubeApi, kubeconfig: Path, verb: str, resource: str, plan: dict[str, Any]
) -> None:
    prepared.forbidden.add((verb, resource))
    found = of(before(kubeconfig, **plan), "rights")
    assert (found.level, found.found) == ("fail", f"may not {verb} {resource} in serving")
    assert "--clusterrole=admin" in found.advice


def test_a_right_that_only_an_option_needs(prepared: KubeApi, kubeconfig: Path) -> None:
    prepared.forbidden |= {("create", kind) for kind in ("roles", "ingresses", "rayservices")}
    findings = before(kubeconfig, mode="static")
    assert of(findings, "rights").level == "ok"
    found = of(findings, "rights for options")
    assert (found.level, found.found) == (
        "warn",
        "may not create roles; create ingresses in serving",
    )


def test_a_look_that_only_an_option_takes(prepared: KubeApi, kubeconfig: Path) -> None:
    """Of a namespace, by whom a Role lets look at this one alone."""
    prepared.forbidden.add(("get", "namespaces"))
    findings = before(kubeconfig, mode="static")
    assert of(findings, "rights").level == "ok"
    found = of(findings, "rights for options")
    assert found.level == "warn"
    assert "may not get namespaces serving (cache.type=hostPath looks at" in found.found
    (asked,) = [
        call.body["spec"]["resourceAttributes"]
        for call in prepared.made("POST", "selfsubjectaccessreviews")
        if call.body["spec"]["resourceAttributes"]["resource"] == "namespaces"
    ]
    assert asked["name"] == asked["namespace"] == "serving"


def test_gpus_in_a_machine_that_nobody_offers(prepared: KubeApi, kubeconfig: Path) -> None:
    prepared.put("/api/v1/nodes/a", node(**{"nvidia.com/gpu.present": "true"}))
    findings = before(kubeconfig, gpus=1)
    assert of(findings, "gpu operator").level == "fail"
    assert "a: GPUs in the machine and no nvidia.com/gpu" in of(findings, "gpu operator").found
    assert of(findings, "gpus").found == "0 of nvidia.com/gpu on ready nodes, 1 wanted"


def test_quotas_that_are_used_up(prepared: KubeApi, kubeconfig: Path) -> None:
    hard = {
        "pods": "20",
        "requests.cpu": "8",
        "requests.nvidia.com/gpu": "4",
        "limits.memory": "8Gi",
    }
    used = {
        "pods": "3",
        "requests.cpu": "8000m",
        "requests.nvidia.com/gpu": "2",
        "limits.memory": "1Gi",
    }
    path = f"{CORE}/resourcequotas/team"
    prepared.put(path, {"metadata": {}, "status": {"hard": hard, "used": used}})
    found = of(before(kubeconfig, gpus=4), "quota team")
    assert found.level == "fail"
    assert "used up: requests.cpu, requests.nvidia.com/gpu (2 left, 4 wanted)" in found.advice
    assert "limits.memory 1Gi/8Gi" in found.found


def test_a_quota_that_is_not_counted_yet(prepared: KubeApi, kubeconfig: Path) -> None:
    hard = {"requests.nvidia.com/gpu": "0"}
    prepared.put(f"{CORE}/resourcequotas/new", {"metadata": {}, "spec": {"hard": hard}})
    assert of(before(kubeconfig, gpus=1), "quota new").level == "warn"


def helm_record(name: str, revision: int, state: str) -> dict[str, Any]:
    labels = {"owner": "helm", "name": name, "version": str(revision), "status": state}
    return {"kind": "Secret", "metadata": {"labels": labels}, "type": "helm.sh/release.v1"}


def test_a_helm_that_was_cut_off(prepared: KubeApi, kubeconfig: Path) -> None:
    records = (("plinth", 9, "deployed"), ("plinth", 10, "pending-upgrade"), ("db", 1, "deployed"))
    for name, revision, state in records:
        path = f"{CORE}/secrets/sh.helm.release.v1.{name}.v{revision}"
        prepared.put(path, helm_record(name, revision, state))
    found = of(before(kubeconfig), "release plinth")
    assert found.level == "fail"
    assert found.found == "revision 10 is pending-upgrade: helm was cut off"
    assert f"helm rollback plinth -n {NAMESPACE}" in found.advice


def test_two_releases_in_one_namespace(prepared: KubeApi, kubeconfig: Path) -> None:
    static_release(prepared)
    found = of(before(kubeconfig, release="second"), "two releases")
    assert found.level == "warn"
    assert found.found == "plinth is in serving too, with Redis plinth-redis:6379/1"
    # Installed all the same (`helm template | kubectl apply`), on the same database of one Redis.
    static_release(prepared, "second")
    config = prepared.objects[f"{CORE}/configmaps/second-config"]
    config["metadata"]["annotations"]["plinth.dev/redis"] = "plinth-redis:6379/1"
    prepared.put(f"{CORE}/configmaps/second-config", config)
    found = of(before(kubeconfig, release="second"), "two releases")
    assert found.level == "fail"
    assert "serve each other's queues" in found.advice


def test_what_may_not_be_looked_at_does_not_hide_the_rest(
    prepared: KubeApi, kubeconfig: Path
) -> None:
    prepared.forbidden |= {("list", "nodes"), ("create", "statefulsets")}
    prepared.script("GET", "/storageclasses$", Reply(500, "etcd is away"))
    findings = before(kubeconfig)
    assert of(findings, "gpus").level == "warn"
    assert "a ClusterRole with the rule" in of(findings, "gpus").advice
    assert of(findings, "storage").level == "fail"
    assert of(findings, "rights").found == "may not create statefulsets in serving"
    assert of(findings, "helm").level == "ok"


def test_a_mode_that_is_none(kubeconfig: Path) -> None:
    assert "rayservice or static" in error_of(plinth_k8s(kubeconfig, "doctor", "--mode", "nomad"))
