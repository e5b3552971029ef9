"""What every API server answers alike: run on the scripted one, or on KUBECONFIG's own."""

from __future__ import annotations

import json

import pytest

from kube_cluster import Cluster, error_of, plinth_k8s
from kube_release import APPS, static_release

pytestmark = pytest.mark.cluster


def run(cluster: Cluster, *arguments: str) -> tuple[int, str]:
    result = plinth_k8s(cluster.kubeconfig, *arguments, namespace=cluster.namespace, key="")
    return result.exit_code, result.output


@pytest.fixture
def release(cluster: Cluster) -> Cluster:
    static_release(cluster)
    return cluster


def test_a_statefulset_and_a_deployment_are_scaled(release: Cluster) -> None:
    code, out = run(release, "scale", "reward", "3")
    assert code == 0
    assert "statefulset plinth-reward: 1 to 3 pods" in out
    assert release.get(f"{APPS}/statefulsets/plinth-reward")["spec"]["replicas"] == 3
    equivalent = f"kubectl -n {release.namespace} scale statefulset/plinth-reward --replicas=3"
    assert equivalent in out
    assert f"helm upgrade plinth CHART -n {release.namespace}" in out
    assert "--set stages.reward.pods=3" in out
    code, out = run(release, "scale", "gateway", "1")
    assert (code, "deployment plinth-gateway: 2 to 1 pods" in out) == (0, True)
    assert release.get(f"{APPS}/deployments/plinth-gateway")["spec"]["replicas"] == 1


def test_status_tells_what_is_wanted_and_what_it_could_not_ask(release: Cluster) -> None:
    code, out = run(release, "status", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["release"]["mode"] == "static"
    wanted = {one["stage"]: one["wanted"] for one in found["stages"]}
    assert wanted["inference"] == 2
    assert wanted["redis"] == 1
    assert "PLINTH_API_KEY" in found["unknown"]["platform"]


def test_no_release(cluster: Cluster) -> None:
    result = plinth_k8s(cluster.kubeconfig, "status", namespace=cluster.namespace)
    assert f"no release of the chart in namespace {cluster.namespace}" in error_of(result)


def test_two_releases(release: Cluster) -> None:
    static_release(release, "other")
    result = plinth_k8s(release.kubeconfig, "status", namespace=release.namespace)
    assert "other, plinth; say --release" in error_of(result)
    code, out = run(release, "--release", "other", "status", "--json")
    assert (code, json.loads(out)["release"]["name"]) == (0, "other")
    result = plinth_k8s(
        release.kubeconfig, "--release", "third", "status", namespace=release.namespace
    )
    assert "no release 'third'" in error_of(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("drain", "plinth-nope-0"), 'pods "plinth-nope-0" not found'),
        (("drain", "node/no-such-node"), 'nodes "no-such-node" not found'),
        (("scale", "nope", "1"), "no 'nope'; it has: gateway, head, coordinator"),
        (("scale", "redis", "2"), "redis is one pod"),
        (("logs", "inference", "nope"), "no 'nope'"),
    ],
)
def test_what_is_not_there(release: Cluster, arguments: tuple[str, ...], words: str) -> None:
    result = plinth_k8s(release.kubeconfig, *arguments, namespace=release.namespace, key="")
    assert words in error_of(result)


def test_who_may_do_nothing_is_told_the_role(release: Cluster) -> None:
    result = plinth_k8s(release.powerless(), "status", namespace=release.namespace)
    said = error_of(result)
    assert f"you may not list deployments in {release.namespace}" in said
    assert 'a Role with the rule {apiGroups: ["apps"], resources: ["deployments"]' in said
    assert "--verb=list --resource=deployments.apps" in said


def test_doctor_before_an_install_looks_at_everything(cluster: Cluster) -> None:
    _, out = run(cluster, "doctor", "--mode", "static")
    for check in ("kubernetes", "rights", "storage", "nodes", "quotas", "helm"):
        assert check in out
    assert "not answered" not in out
