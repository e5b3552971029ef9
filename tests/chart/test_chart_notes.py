"""What NOTES tell is so: their commands find what they name, and lead where they say."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import kube_helm
import rendering
from kube_api import NAMESPACE
from kube_cluster import plinth_k8s
from kube_helm import HelmClient, HelmServer
from kube_objects import Json
from kube_release import CLUSTER, RAY
from release import Document, Release

ROOT = Path(__file__).parents[2]
MODES = ["static", "rayservice"]


@pytest.fixture
def helm4() -> rendering.Helm4:
    found = rendering.find_helm4()
    if found is None:
        pytest.skip("Helm 4 is not installed here; `make chart` gets it")
    return found


def staying(one: Document) -> bool:
    """Whether Helm makes it as a hook, and leaves it when the release is gone."""
    notes = one["metadata"].get("annotations") or {}
    policies = notes.get("helm.sh/hook-delete-policy", "").split(",")
    return "helm.sh/hook" in notes and not {"hook-succeeded", "hook-failed"} <= set(policies)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_is_imported_was_copied_there(helm4: rendering.Helm4, mode: str) -> None:
    """No image holds the package that the name smollm2 means."""
    told = helm4.notes({"ray": {"mode": mode}})
    for source in re.findall(r"plinth models import (\S+)", told):
        assert re.search(rf" cp \S+ \S+ \S+ \S+:{re.escape(source)}$", told, re.MULTILINE), source
    kept = [ROOT / "docs" / page for page in ("kubernetes.md", "k8s.md", "operations.md")]
    for path in kept:
        for source in re.findall(r"plinth models import (\S+)", path.read_text()):
            assert f":{source}\n" in path.read_text(), f"{path.name} copies {source} nowhere"


@pytest.mark.parametrize("mode", MODES)
def test_what_helm_leaves_is_deleted_by_a_command(helm4: rendering.Helm4, mode: str) -> None:
    values = {"ray": {"mode": mode}, "tests": {"chaos": {"enabled": True}}}
    release = Release(rendering.documents(helm4.render(values)))
    left = {one["metadata"]["name"] for one in release.documents if staying(one)}
    assert left == {"demo-plinth-smoke", "demo-plinth-chaos"}
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for text, name in ((helm4.notes(values), "demo"), (page, "plinth")):
        (selector,) = re.findall(r"kubectl -n models delete pod -l (\S+)$", text, re.MULTILINE)
        wanted = dict(pair.split("=") for pair in selector.split(","))
        assert wanted["app.kubernetes.io/instance"] == name
        wanted["app.kubernetes.io/instance"] = rendering.RELEASE
        picked = {
            one["metadata"]["name"]
            for one in release.of("Pod")
            if wanted.items() <= one["metadata"]["labels"].items()
        }
        assert picked == left
        assert not [pod for pod in release.picked(wanted) if not pod.owner.startswith("Pod/")]


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


def values(pods: int, most: int) -> Json:
    return {
        "defaults": {"pdb": {"enabled": False}},
        "networkPolicy": {"enabled": False},
        "stages": {"inference": {"pods": pods, "maxPods": most}},
    }


def runs(kube: HelmServer) -> Json:
    """KubeRay, once: the cluster is made as the RayService says, and is the active one."""
    service = kube.objects[f"{RAY}/rayservices/plinth"]
    path = f"{RAY}/rayclusters/{CLUSTER}"
    if path not in kube.objects:
        made = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}}
        kube.put(path, {**made, "spec": service["spec"]["rayClusterConfig"]})
    groups = kube.objects[path]["spec"]["workerGroupSpecs"]
    sums = {
        f"{word}WorkerReplicas": sum(int(group[f"{word}Replicas"]) for group in groups)
        for word in ("min", "max")
    }
    active = {"rayClusterName": CLUSTER, "rayClusterStatus": sums}
    kube.put(f"{RAY}/rayservices/plinth", {**service, "status": {"activeServiceStatus": active}})
    return next(one for one in groups if one["groupName"] == "inference")


def test_a_number_that_kuberay_does_not_pass_on_is_told_until_it_is(
    kube: HelmServer, client: HelmClient, kubeconfig: Path
) -> None:
    """Helm says that the upgrade is done, and the Ray cluster that runs has the old numbers."""
    client.install(values(2, 4))
    runs(kube)
    assert "Numbers of pods differ" not in client.upgrade(values(2, 4))
    told_of: list[int] = []
    for _ in range(2):  # when it changes, and at a later upgrade
        told = client.upgrade(values(3, 6))
        found = runs(kube)
        assert (found["minReplicas"], found["maxReplicas"]) == (2, 4)
        assert f"plinth k8s -n {NAMESPACE} --release plinth scale inference 3\n" in told
        told_of.append(len(re.findall(r"^   plinth k8s .* scale ", told, re.MULTILINE)))
    # At once what changed; later all, as it is known by their sums alone that one is behind.
    assert told_of == [1, 5]
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here (Debian: kubernetes-client)")
    for line in re.findall(r"^   (plinth k8s .* scale .*)$", told, re.MULTILINE):
        result = plinth_k8s(kubeconfig, *shlex.split(line)[6:], "--force")
        assert result.exit_code == 0, result.output
    (line,) = re.findall(r"^   (kubectl .* patch raycluster .*)$", told, re.MULTILINE)
    words = [*shlex.split(line), "--kubeconfig", str(kubeconfig)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    found = runs(kube)
    assert (found["minReplicas"], found["maxReplicas"]) == (3, 6)
    assert "Numbers of pods differ" not in client.upgrade(values(3, 6))


def test_tolerations_reach_pods_of_kuberay(any_helm: rendering.Helm) -> None:
    """KubeRay compares templates without them: something else must differ."""
    made = []
    for key in ("one", "two"):
        stages = {"inference": {"tolerations": [{"key": key, "operator": "Exists"}]}}
        release = Release(rendering.documents(any_helm.render({"stages": stages})))
        made.append({pod.component: pod for pod in release.ray_pods})
    for component, pod in made[0].items():
        notes = [one[component].annotations["checksum/tolerations"] for one in made]
        assert (notes[0] == notes[1]) == (component != "inference")
        assert pod.spec.get("tolerations", []) == (
            [{"key": "one", "operator": "Exists"}] if component == "inference" else []
        )
