"""What the documents tell an operator to do with the chart, as far as it goes without a cluster:
the pod of `ops/backup/pod.jq`, and the names and files of docs/kubernetes.md and operations.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import rendering
from kinds import NEWEST, OLDEST, Kinds
from release import Release

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "kubernetes.md", ROOT / "docs" / "operations.md"]
CASES = ["values-local.yaml", "values-production.yaml"]


def values_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((rendering.CHART / name).read_text())
    return found


def made_of(source: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """What jq makes of a StatefulSet or a RayService."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed here")
    command = json.dumps(["plinth", "backup", "s3://bucket/plinth"])
    program = str(ROOT / "ops" / "backup" / "pod.jq")
    base = ["jq", "--arg", "name", "a-backup", "--argjson", "command", command]
    done = subprocess.run(
        [*base, *arguments, "-f", program],
        input=json.dumps({**source, "metadata": {**source["metadata"], "namespace": "models"}}),
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def fits(document: dict[str, Any]) -> bool:
    """The schemas of the oldest and the newest Kubernetes."""
    pytest.importorskip("kubernetes_validate")
    release = Release([document])
    return not [one for version in (OLDEST, NEWEST) for one in Kinds().check(release, version)]


def trainer_of(release: Release) -> dict[str, Any]:
    sets = [d for d in release.of("StatefulSet") if d["metadata"]["name"].endswith("-trainer")]
    return [*release.of("RayService"), *sets][0]


@pytest.mark.parametrize("case", CASES)
def test_a_pod_of_the_trainers_template(any_helm: rendering.Helm, case: str) -> None:
    release = Release(rendering.documents(any_helm.render(values_of(case))))
    pod = made_of(trainer_of(release), "--arg", "claim", "backups")
    pod["metadata"]["annotations"] = {}
    (one,) = Release([pod]).pods
    assert one.main["command"] == ["plinth", "backup", "s3://bucket/plinth"]
    environment = {entry["name"] for entry in one.main["env"]}
    assert {"PLINTH_REDIS_URL", "PLINTH_DATA_DIR", "PLINTH_CONFIG"} <= environment
    mounts = {mount["name"] for mount in one.main["volumeMounts"]}
    assert mounts <= {volume["name"] for volume in one.spec["volumes"]}
    assert "backups" in mounts
    assert ("store" in mounts) == (case == "values-local.yaml")
    # No Service sends it requests and no budget counts it; Redis and the store let it in.
    selectors = [{"matchLabels": one["spec"]["selector"]} for one in release.of("Service")]
    selectors += [one["spec"]["selector"] for one in release.of("PodDisruptionBudget")]
    assert len(selectors) > 5
    assert not any(one.matches(selector) for selector in selectors)
    edges = {
        policy["metadata"]["name"].removeprefix(f"{rendering.RELEASE}-plinth-")
        for policy in release.of("NetworkPolicy")
        if one.matches(policy["spec"]["podSelector"])
    }
    assert {"default-deny", "dns", "clients-to-redis"} <= edges
    assert ("stages-to-store" in edges) == (case == "values-production.yaml")
    assert fits(pod)


def test_a_schedule_of_it(any_helm: rendering.Helm) -> None:
    release = Release(rendering.documents(any_helm.render(values_of(CASES[0]))))
    cron = made_of(trainer_of(release), "--arg", "schedule", "17 3 * * *")
    assert (cron["kind"], cron["spec"]["schedule"]) == ("CronJob", "17 3 * * *")
    assert fits(cron)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_there(any_helm: rendering.Helm, page: Path) -> None:
    """Objects by kubectl's names, selectors, containers, files and values' keys."""
    text = page.read_text().replace("\\\n", " ")
    values = {**values_of("values-local.yaml"), "fullnameOverride": "plinth"}
    release = Release(rendering.documents(any_helm.render(values)))
    there = {f"{d['kind']}/{d['metadata']['name']}".lower() for d in release.documents}
    there |= {name.replace("service/", "svc/") for name in there}
    named = set(re.findall(r"\b((?:deployment|statefulset|svc)/plinth-[a-z]+)", text))
    assert named
    assert named <= there, named - there
    for selector in re.findall(r"-l (app\.kubernetes\.io/\S+)", text):
        labels = dict(part.split("=") for part in selector.split(","))
        labels["app.kubernetes.io/instance"] = rendering.RELEASE
        mains = [pod.main["name"] for pod in release.picked(labels)]
        assert mains == (["trial", "trial"] if "plinth.dev/trial" in labels else ["ray"])
    for path in re.findall(r"\b(charts/plinth(?:/[\w.-]+)?|ops/[\w/.-]+\w)", text):
        assert (ROOT / path).exists(), path
    given = yaml.safe_load((rendering.CHART / "values.yaml").read_text())
    for key in re.findall(r"--set(?:-json)? '?([\w.]+)=", text):
        at: Any = given
        for part in key.split("."):
            assert part in at, key
            at = at[part]


def test_the_egress_of_the_page_is_taken(any_helm: rendering.Helm) -> None:
    (rule,) = re.findall(r"networkPolicy\.extraEgress=(\[.*\])'", PAGES[0].read_text())
    values = {**values_of(CASES[0]), "networkPolicy": {"extraEgress": json.loads(rule)}}
    any_helm.lint(values)
    release = Release(rendering.documents(any_helm.render(values)))
    extra = release.named("NetworkPolicy", f"{rendering.RELEASE}-plinth-extra")
    assert extra is not None
    assert extra["spec"]["egress"] == json.loads(rule)
