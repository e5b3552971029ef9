"""What `plinth k8s` goes by is what the chart makes: its renderings, put on an API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import rendering
from kube_api import NAMESPACE, KubeApi
from kube_cluster import error_of, plinth_k8s
from kube_release import CLUSTER, RAY
from plinth.cluster.kubernetes_ops.api import Api
from plinth.cluster.kubernetes_ops.release import Release, container_of, find
from plinth.cluster.kubernetes_ops.rights import KINDS, LOOKS, needed

CASES = {
    "values-local.yaml": "static",
    "values-production.yaml": "rayservice",
    "static-workers-values.yaml": "static",
}
PLURALS = {"PodDisruptionBudget": "poddisruptionbudgets", "ConfigMap": "configmaps"}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def objects(case: str) -> list[dict[str, Any]]:
    engines = rendering.engines()
    if not engines:
        pytest.skip("no Helm is installed here; `make chart` gets it")
    return rendering.documents(engines[0].render(rendering.cases()[case]))


@pytest.fixture
def kube(objects: list[dict[str, Any]]) -> Iterator[KubeApi]:
    with KubeApi() as running:
        for one in objects:
            group = one["apiVersion"]
            base = f"/api/{group}" if group == "v1" else f"/apis/{group}"
            plural = PLURALS.get(one["kind"], one["kind"].lower() + "s")
            running.put(f"{base}/namespaces/{NAMESPACE}/{plural}/{one['metadata']['name']}", one)
            if one["kind"] == "RayService":
                config = one["spec"]["rayClusterConfig"]
                cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": config}
                running.put(f"{RAY}/rayclusters/{CLUSTER}", cluster)
                path = f"{RAY}/rayservices/{one['metadata']['name']}"
                status = {"activeServiceStatus": {"rayClusterName": CLUSTER}}
                running.put(path, {**one, "status": status})
        yield running


@pytest.fixture
def release(kube: KubeApi, tmp_path: Path) -> Release:
    with Api.open(kubeconfig=kube.kubeconfig(tmp_path)) as api:
        return find(api)


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pod templates of everything that makes pods for long."""
    found = [one["spec"]["template"] for one in objects if one["kind"] in WORKLOADS]
    for one in objects:
        if one["kind"] == "RayService":
            config = one["spec"]["rayClusterConfig"]
            found += [config["headGroupSpec"]["template"]]
            found += [group["template"] for group in config["workerGroupSpecs"]]
    return found


WORKLOADS = {"Deployment", "StatefulSet"}


def test_the_release_is_found_with_all_its_parts(
    case: str, release: Release, objects: list[dict[str, Any]]
) -> None:
    assert (release.name, release.mode) == (rendering.RELEASE, CASES[case])
    key = "app.kubernetes.io/component"
    made = {pod["metadata"]["labels"][key] for pod in pods(objects)}
    assert set(release.components) == made


def test_every_pod_is_picked_and_its_main_container_is_known(
    release: Release, objects: list[dict[str, Any]]
) -> None:
    wanted = dict(pair.split("=") for pair in release.selector.split(","))
    for pod in pods(objects):
        labels = pod["metadata"]["labels"]
        assert wanted.items() <= labels.items()
        names = [one["name"] for one in pod["spec"]["containers"]]
        assert container_of(labels["app.kubernetes.io/component"]) == names[0]


def test_every_stage_is_scaled_where_its_pods_come_from(
    release: Release, kube: KubeApi, tmp_path: Path
) -> None:
    kubeconfig = kube.kubeconfig(tmp_path)
    objects = list(kube.objects.values())
    scalers = [one for one in objects if one.get("kind") == "HorizontalPodAutoscaler"]
    scaled = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in scalers}
    for component in release.components:
        if component in {"gateway", "head", "redis"}:
            continue
        more = ("--force",) if component == "inference" else ()
        result = plinth_k8s(kubeconfig, "scale", component, "5", *more)
        if component in scaled:
            lines = error_of(result).splitlines()
        else:
            assert result.exit_code == 0, result.output
            lines = result.stdout.splitlines()
        # What it says keeps the number is a key of the chart's values.
        line = next(x for x in lines if "--set " in x)
        path = line.split("--set ")[1].split("=")[0].split(".")
        values: Any = yaml.safe_load((rendering.CHART / "values.yaml").read_text())
        for key in path:
            assert key in values, f"values.yaml has no {'.'.join(path)}"
            values = values[key]
    for found in kube.objects.values():
        component = found["metadata"].get("labels", {}).get("app.kubernetes.io/component")
        if found.get("kind") == "StatefulSet" and component not in {"head", "redis", *scaled}:
            assert found["spec"]["replicas"] == 5
        if found.get("kind") == "RayCluster":
            assert {group["replicas"] for group in found["spec"]["workerGroupSpecs"]} == {5}


def test_drain_runs_what_the_pods_own_hook_runs(objects: list[dict[str, Any]]) -> None:
    hooks = {
        tuple(one["lifecycle"]["preStop"]["exec"]["command"][:3])
        for pod in pods(objects)
        for one in pod["spec"]["containers"]
        if one["name"] == "ray" and "lifecycle" in one
    }
    assert hooks == {("python", "-m", "plinth.cluster.node_drain")}


def test_doctor_asks_for_the_right_to_everything_that_is_made(
    case: str, objects: list[dict[str, Any]]
) -> None:
    made = {one["kind"] for one in objects}
    assert made <= set(KINDS)
    asked = needed(CASES[case], cert_manager="Certificate" in made)
    options = {kind for kind, one in KINDS.items() if one.option and not one.default}
    assert made - options <= asked


def test_by_default_it_asks_for_what_the_defaults_make() -> None:
    engines = rendering.engines()
    if not engines:
        pytest.skip("no Helm is installed here; `make chart` gets it")
    made = {one["kind"] for one in rendering.documents(engines[0].render({}))}
    assert made - {"Pod"} == needed("rayservice", cert_manager=False)  # Pod: of `helm test`


def test_what_the_templates_look_at_is_asked_for() -> None:
    """Helm ends where its user may not look; where a kind is no word, the chart makes it."""
    kinds: set[str] = set()
    for path in (rendering.CHART / "templates").rglob("*"):
        if path.is_file():
            kinds |= set(re.findall(r'lookup "[^"]+" "([^"]+)"', path.read_text()))
    assert "Namespace" in kinds
    assert kinds <= set(KINDS) | set(LOOKS)
    assert not KINDS["Secret"].mode and KINDS["Secret"].default  # of others', in every release


def test_two_releases_are_told_apart_by_what_the_chart_notes(
    release: Release, objects: list[dict[str, Any]]
) -> None:
    (config,) = [
        one for one in objects if "plinth.dev/redis" in one["metadata"].get("annotations", {})
    ]
    assert config["metadata"]["name"] == f"{release.fullname}-config"
    assert "plinth.yaml" in config["data"]
