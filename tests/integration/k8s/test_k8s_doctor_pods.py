"""`plinth k8s doctor` of pods that fail, or that nobody can make."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_k8s_doctor_after import after

from certificates import DAY, NOW
from kube_api import KubeApi
from kube_cluster import of, plinth_k8s
from kube_gateway import KEY, ScriptedGateway
from kube_release import (
    APPS,
    CLUSTER,
    CORE,
    STAGES,
    pod,
    ray_release,
    static_release,
    warning,
    workload,
)
from plinth.cluster.kubernetes_ops import doctor_after
from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.gateway_client import opened
from plinth.cluster.kubernetes_ops.release import find
from plinth.cluster.kubernetes_ops.status import gather

POD = f"{CORE}/pods/plinth-inference-0"


def test_a_probe_that_failed_lately(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    well.put(POD, pod("inference", "10.0.1.3", ready=False))
    for number, minutes in enumerate((1, 60)):
        when = (NOW - minutes / 1440 * DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = "plinth-inference-0" if number == 0 else "plinth-head-0"
        message = (
            'Readiness probe failed: service "plinth.internal.v1.InferenceService" not serving'
        )
        event = warning("Pod", name, "Unhealthy", message, when)
        well.put(f"{CORE}/events/e{number}", event)
    probes = [f for f in after(kubeconfig, gateway) if f.check == "probes"]
    (found,) = probes
    assert found.level == "fail"
    assert found.found.startswith("plinth-inference-0: Readiness probe failed")


# As controllers say it, of pods that the API server refuses.
NO_ACCOUNT = (
    'create Pod {0}-0 in StatefulSet {0} failed error: pods "{0}-0" is forbidden: error looking up '
    'service account serving/plinth: serviceaccount "plinth" not found'
)
QUOTA = (
    'Error creating: pods "plinth-gateway-6d4f8b7c9d-x2x7q" is forbidden: exceeded quota: team, '
    "requested: limits.cpu=2, used: limits.cpu=8, limited: limits.cpu=8"
)


def test_pods_that_can_not_be_made(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    """Absent pods are not ready ones: six StatefulSets that make none, a Deployment that makes one
    of two, and the words of those who try."""
    sets = ("head", *STAGES)
    gone = [f"plinth-{name}-0" for name in sets] + ["plinth-inference-1", "plinth-gateway-2"]
    for name in gone:
        well.delete(f"{CORE}/pods/{name}")
    for name in sets:
        message = NO_ACCOUNT.format(f"plinth-{name}")
        event = warning("StatefulSet", f"plinth-{name}", "FailedCreate", message)
        well.put(f"{CORE}/events/{name}", event)
    replica_set = "plinth-gateway-6d4f8b7c9d"
    well.put(f"{CORE}/events/g", warning("ReplicaSet", replica_set, "FailedCreate", QUOTA))
    findings = after(kubeconfig, gateway)
    for name in sets:
        found = of(findings, f"pods {name}")
        wanted = 2 if name == "inference" else 1
        assert found.level == "fail"
        assert found.found.startswith(f"0 of {wanted} pods; plinth-{name}: FailedCreate: create P")
        assert "serviceAccount.create=true" in found.advice
    found = of(findings, "pods gateway")
    assert found.found.startswith(f"1 of 2 pods; {replica_set}: FailedCreate: Error creating")
    assert "raise the quota" in found.advice
    assert of(findings, "pods redis").level == "ok"
    assert plinth_k8s(kubeconfig, "doctor", url=gateway.address).exit_code == 1


def test_pods_that_are_missing_without_a_word(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    well.delete(POD)
    found = of(after(kubeconfig, gateway), "pods inference")
    assert found.found == "1 of 2 pods; no event of statefulset/plinth-inference"
    assert found.advice == "kubectl -n serving describe statefulset/plinth-inference"
    # None that are wanted are none that lack.
    well.put(f"{APPS}/statefulsets/plinth-reward", workload("StatefulSet", "reward", 0))
    well.delete(f"{CORE}/pods/plinth-reward-0")
    assert of(after(kubeconfig, gateway), "pods reward").found == "0 ready, 0 wanted"
    well.forbidden.add(("list", "events"))
    findings = after(kubeconfig, gateway)
    assert of(findings, "events").level == "warn"
    assert of(findings, "pods inference").level == "fail"


def test_pods_that_kuberay_can_not_make(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    ray_release(kube)
    kube.put(f"{CORE}/pods/plinth-gateway-1", pod("gateway", "10.0.0.1"))
    message = "Failed to create worker Pod: exceeded quota: team"
    event = warning("RayCluster", CLUSTER, "FailedToCreateWorkerPod", message)
    kube.put(f"{CORE}/events/e", event)
    findings = after(kubeconfig, gateway)
    found = of(findings, "pods inference").found
    assert found == f"0 of 2 pods; {CLUSTER}: FailedToCreateWorkerPod: {message}"
    assert of(findings, "pods head").level == "fail"


def test_what_pods_refer_to_that_can_not_be_made(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway
) -> None:
    """A Secret and a volume that no pod mounts yet, since there is no pod."""
    path = f"{APPS}/statefulsets/plinth-trainer"
    found = well.objects[path]
    spec = found["spec"]["template"]["spec"]
    spec["containers"][0]["env"] = [
        {"name": "T", "valueFrom": {"secretKeyRef": {"name": "other", "key": "token"}}}
    ]
    spec["volumes"] = [{"name": "jobs", "persistentVolumeClaim": {"claimName": "jobs"}}]
    well.put(path, found)
    well.delete(f"{CORE}/pods/plinth-trainer-0")
    findings = after(kubeconfig, gateway)
    assert of(findings, "secrets").found == "other does not exist"
    assert of(findings, "volumes").found == "jobs missing"


@pytest.mark.parametrize("other", ["plinth-b", "plinth-head", "plinth-gateway"])
def test_another_release_whose_name_begins_alike(
    well: KubeApi, kubeconfig: Path, gateway: ScriptedGateway, other: str
) -> None:
    """Its events and volumes are its own, in doctor and in status."""
    static_release(well, other)
    claim = {"kind": "PersistentVolumeClaim", "metadata": {}, "status": {"phase": "Pending"}}
    for name in (f"{other}-store", f"data-{other}-redis-0"):
        well.put(f"{CORE}/persistentvolumeclaims/{name}", claim)
    strangers = (
        ("StatefulSet", f"{other}-inference"),
        ("Pod", f"{other}-inference-0"),
        ("ReplicaSet", f"{other}-gateway-6d4f8b7c9d"),
        ("Pod", f"{other}-gateway-6d4f8b7c9d-x2x7q"),
        ("PersistentVolumeClaim", f"{other}-store"),
        ("RayService", other),
    )
    own = (
        ("StatefulSet", "plinth-inference"),
        ("Pod", "plinth-inference-7"),
        ("ReplicaSet", "plinth-gateway-6d4f8b7c9d"),
        ("PersistentVolumeClaim", "plinth-store"),
    )
    for number, (kind, name) in enumerate((*strangers, *own)):
        well.put(f"{CORE}/events/e{number}", warning(kind, name, "FailedCreate", "no"))
    well.delete(POD)
    with Api.open(kubeconfig=kubeconfig) as api:
        release = find(api, "plinth")
        way = lambda: opened(api, release, address=gateway.address, key=KEY)  # noqa: E731
        findings = doctor_after.examine(api, release, way, [])
        errors = gather(api, release, way)["errors"]
    assert of(findings, "volumes").found == "2 bound"
    assert "plinth-inference: FailedCreate" in of(findings, "pods inference").found
    assert {one["where"] for one in errors} == {name for _, name in own}
