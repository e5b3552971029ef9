"""Who owns a number of pods: real Helms install, upgrade and roll back on an API server that keeps
field owners, while `plinth k8s scale` and an autoscaler change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kube_helm
import rendering
from kube_api import NAMESPACE
from kube_cluster import plinth_k8s
from kube_helm import HelmClient, HelmServer
from kube_objects import Json
from kube_owners import owner_of
from kube_release import CLUSTER, RAY

APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
PATHS = (f"{APPS}/statefulsets/plinth-reward", f"{APPS}/deployments/plinth-gateway")


@pytest.fixture
def kube() -> Iterator[HelmServer]:
    with HelmServer() as running:
        yield running


@pytest.fixture
def kubeconfig(kube: HelmServer, tmp_path: Path) -> Path:
    return kube.kubeconfig(tmp_path)


@pytest.fixture
def client(helm: rendering.Helm, kubeconfig: Path) -> HelmClient:
    return kube_helm.client(helm, kubeconfig, NAMESPACE)


def values(pods: int, *, scaled: bool = False) -> Json:
    """A static release whose gateway and stage `reward` have so many pods, or at least so many;
    without what has no number, so that Helm is quick."""
    limits = {"enabled": scaled, "minReplicas": pods, "maxReplicas": 9}
    reward = {"pods": pods, "maxPods": 9, "autoscaling": {"enabled": scaled, "maxReplicas": 9}}
    return {
        "ray": {"mode": "static"},
        "defaults": {"pdb": {"enabled": False}},
        "networkPolicy": {"enabled": False},
        "redis": {"enabled": False, "external": {"host": "redis.example.com"}},
        "gateway": {"replicas": pods, "autoscaling": limits},
        "stages": {"reward": reward},
    }


def pods(kube: HelmServer) -> set[int]:
    """How many each of the two has."""
    return {int(kube.objects[path]["spec"]["replicas"]) for path in PATHS}


def autoscale(kube: HelmServer, number: int) -> None:
    for path in PATHS:
        kube.autoscale(path, number)


def test_a_number_that_was_scaled_is_the_charts_again(
    kube: HelmServer, client: HelmClient, kubeconfig: Path
) -> None:
    """An upgrade sets what its values say, and so does a rollback, whichever Helm does it."""
    client.install(values(2))
    first = [owner_of(kube.objects[path], "spec", "replicas") for path in PATHS]
    for renew in (lambda: client.upgrade(values(2)), lambda: client.rollback(1)):
        for component in ("reward", "gateway"):
            result = plinth_k8s(kubeconfig, "scale", component, "4")
            assert result.exit_code == 0, result.output
        assert pods(kube) == {4}
        assert [owner_of(kube.objects[path], "spec", "replicas") for path in PATHS] == first
        renew()
        assert pods(kube) == {2}


def test_kuberays_number_is_of_the_cluster_that_runs(
    kube: HelmServer, client: HelmClient, helm: rendering.Helm, kubeconfig: Path
) -> None:
    """Helm 3 sends what differs between two manifests, and so leaves what was scaled."""
    service, cluster = f"{RAY}/rayservices/plinth", f"{RAY}/rayclusters/{CLUSTER}"

    def of(path: str) -> int:
        spec = kube.objects[path]["spec"]
        groups = spec.get("rayClusterConfig", spec)["workerGroupSpecs"]
        return next(int(one["minReplicas"]) for one in groups if one["groupName"] == "reward")

    def ray(pods: int) -> Json:
        return values(pods) | {"ray": {"mode": "rayservice"}}

    client.install(ray(2))
    made = kube.objects[service]
    kube.put(service, {**made, "status": {"activeServiceStatus": {"rayClusterName": CLUSTER}}})
    found = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}}
    kube.put(cluster, {**found, "spec": made["spec"]["rayClusterConfig"]})
    for pods, then in ((2, 4 if helm.name == "Helm 3" else 2), (3, 3)):
        assert plinth_k8s(kubeconfig, "scale", "reward", "4").exit_code == 0
        client.upgrade(ray(pods))
        assert (of(service), of(cluster)) == (then, 4)


def test_what_an_autoscaler_counts_is_left_to_it(kube: HelmServer, client: HelmClient) -> None:
    client.install(values(2, scaled=True))
    for number in (5, 3):
        autoscale(kube, number)
        client.upgrade(values(2, scaled=True))
        assert pods(kube) == {number}
    for revision in (2, 1):
        autoscale(kube, 6 + revision)
        client.rollback(revision)
        assert pods(kube) == {6 + revision}


def test_an_autoscaler_that_is_switched_on_takes_over_what_there_is(
    kube: HelmServer, client: HelmClient, helm: rendering.Helm
) -> None:
    """Helm 3 says the number in each manifest from then on; Helm 4 until the autoscaler has it."""
    client.install(values(4))
    client.upgrade(values(2, scaled=True))
    assert pods(kube) == {4}
    client.upgrade(values(2, scaled=True))  # before it has changed anything
    assert pods(kube) == {4}
    for number in (6, 5):
        autoscale(kube, number)
        client.upgrade(values(2, scaled=True))
        assert pods(kube) == {number}
    autoscale(kube, 7)
    client.rollback(4)
    assert pods(kube) == {6 if helm.name == "Helm 3" else 7}


def test_one_that_is_switched_off_again(
    kube: HelmServer, client: HelmClient, helm: rendering.Helm
) -> None:
    """Helm 3 sets the number; Helm 4 names the owner that it would have to take it from."""
    client.install(values(2, scaled=True))
    autoscale(kube, 5)
    if helm.name == "Helm 3":
        client.upgrade(values(3))
        assert pods(kube) == {3}
        return
    words = 'conflict with "kube-controller-manager" with subresource "scale" using apps/v1'
    with pytest.raises(rendering.Refused, match=words):
        client.upgrade(values(3))
    assert pods(kube) == {5}
