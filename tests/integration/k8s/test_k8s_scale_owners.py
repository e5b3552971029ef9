"""`plinth k8s scale`: whose the number of pods is, before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kube_objects
import kube_owners
from kube_api import KubeApi
from kube_calls import Reply
from kube_cluster import error_of, plinth_k8s
from kube_objects import Json
from kube_release import APPS, CLUSTER, NAMESPACE, RAY, ray_release, static_release

SERVICE, ACTIVE = f"{RAY}/rayservices/plinth", f"{RAY}/rayclusters/{CLUSTER}"


def applied_by(kube: KubeApi, path: str, operation: str) -> Json:
    """The object at `path` as Helm wrote it, server-side (Helm 4) or not (Helm 3); what it said."""
    said: Json = json.loads(json.dumps(kube.objects[path]))
    status, meta = said.pop("status", None), said["metadata"]
    said["metadata"] = {key: meta[key] for key in ("name", "labels")}
    made = kube_owners.applied(None, said, "helm", force=False)
    if operation == "Update":
        made = kube_owners.updated({"metadata": {}}, said, "helm")
    kube.put(path, made | ({"status": status} if status else {}))
    return said


OWNED = {
    "gateway": (f"{APPS}/deployments/plinth-gateway", ("spec", "replicas")),
    "reward": (f"{APPS}/statefulsets/plinth-reward", ("spec", "replicas")),
    "tokenizer": (SERVICE, ("spec", "rayClusterConfig", "workerGroupSpecs")),
}


@pytest.mark.parametrize("operation", ["Apply", "Update"])
@pytest.mark.parametrize("component", OWNED)
def test_the_chart_stays_the_owner_of_what_is_scaled(
    kube: KubeApi, kubeconfig: Path, component: str, operation: str
) -> None:
    path, field = OWNED[component]
    ray = path == SERVICE
    if ray:
        ray_release(kube)
    else:
        static_release(kube)
    said = applied_by(kube, path, operation)
    more = ("--replicas", "2") if ray else ()
    result = plinth_k8s(kubeconfig, "scale", component, "3", *more)
    assert result.exit_code == 0, result.output
    found = kube.objects[path]
    fields = [field] + ([("spec", "serveConfigV2")] if ray else [])
    for one in fields:
        assert kube_owners.owner_of(found, *one) == [("helm", operation)]
    managers = {one["manager"] for one in found["metadata"]["managedFields"]}
    assert managers == {"helm"}
    if operation == "Apply":  # Helm 4's next upgrade: nothing to refuse, and its own number
        again = kube_owners.applied(found, said, "helm", force=False)
        assert again["spec"] == said["spec"]
        assert said["spec"] != found["spec"]
    lasts = "as long as this Ray cluster" if ray else "the next helm upgrade or rollback sets"
    assert lasts in result.stdout


def test_what_kubectl_scaled_before_is_the_charts_again(kube: KubeApi, kubeconfig: Path) -> None:
    """What Helm 4 says of it, before and after."""
    static_release(kube)
    path, _ = OWNED["reward"]
    said = applied_by(kube, path, "Apply")
    now = kube.objects[path]
    changed = kube_objects.merged(now, {"spec": {"replicas": 4}})
    kube.put(path, kube_owners.updated(now, changed, "OpenAPI-Generator", "scale"))
    words = (
        'conflict with "OpenAPI-Generator" with subresource "scale" using apps/v1: .spec.replicas'
    )
    with pytest.raises(kube_owners.Conflict, match=words):
        kube_owners.applied(kube.objects[path], said, "helm", force=False)
    for pods in (4, 3):  # the same number, and another
        assert plinth_k8s(kubeconfig, "scale", "reward", str(pods)).exit_code == 0
        found = kube_owners.applied(kube.objects[path], said, "helm", force=False)
        assert found["spec"]["replicas"] == 1


def test_a_controller_that_writes_meanwhile_keeps_what_is_its_own(
    kube: KubeApi, kubeconfig: Path
) -> None:
    """Between the number and its owner the StatefulSet's controller tells how it goes: 409."""
    static_release(kube)
    path, field = OWNED["reward"]
    applied_by(kube, path, "Apply")
    kube.script("PATCH", "/plinth-reward$", Reply(409, "the object has been modified"))
    assert plinth_k8s(kubeconfig, "scale", "reward", "3").exit_code == 0
    assert len(kube.made("PATCH", "/plinth-reward$")) == 2
    assert kube_owners.owner_of(kube.objects[path], *field) == [("helm", "Apply")]


def test_who_may_not_say_who_owns_it_is_told_what_helm_4_takes(
    kube: KubeApi, kubeconfig: Path
) -> None:
    static_release(kube)
    path, field = OWNED["reward"]
    applied_by(kube, path, "Apply")
    kube.forbidden.add(("patch", "statefulsets"))
    result = plinth_k8s(kubeconfig, "scale", "reward", "3")
    assert result.exit_code == 0, result.output
    assert "Helm 4 takes `--force-conflicts` at its next upgrade or rollback" in result.stdout
    assert "you may not patch statefulsets in serving" in result.stdout
    assert kube_owners.owner_of(kube.objects[path], *field) == [("plinth-k8s", "Update")]


@pytest.mark.parametrize(
    ("component", "path", "bound"),
    [
        ("gateway", "deployments/plinth-gateway", "gateway.autoscaling.minReplicas=N"),
        ("reward", "statefulsets/plinth-reward", "stages.reward.maxPods=M"),
    ],
)
def test_what_has_an_autoscaler_is_left_to_it(
    kube: KubeApi, kubeconfig: Path, component: str, path: str, bound: str
) -> None:
    static_release(kube)
    before = kube.objects[f"{APPS}/{path}"]["spec"]["replicas"]
    scaler = f"/apis/autoscaling/v2/namespaces/{NAMESPACE}/horizontalpodautoscalers"
    kube.put(
        f"{scaler}/plinth-{component}",
        {"kind": "HorizontalPodAutoscaler", "spec": {"maxReplicas": 9}},
    )
    said = error_of(plinth_k8s(kubeconfig, "scale", component, "3"))
    assert f"keeps the pods of {component} between 1 and 9" in said
    assert bound in said
    assert kube.objects[f"{APPS}/{path}"]["spec"]["replicas"] == before
