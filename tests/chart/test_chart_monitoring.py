"""Who is scraped as what: a pod that waits for a replica must not be told as one that is down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import exported
import pytest
import yaml

import monitoring
import rendering
from release import Release

ADAPTER = Path(__file__).parents[2] / "ops" / "kubernetes" / "prometheus-adapter.yaml"
WATCHED: dict[str, Any] = {
    "networkPolicy": {"metrics": {"from": [{"namespaceSelector": {}}]}},
    "monitoring": {"serviceMonitor": {"enabled": True}},
}


@pytest.mark.parametrize(
    ("pods", "marked"),
    [({}, {"inference"}), ({"tokenizer": 3}, {"inference", "tokenizer"})],
)
def test_a_target_that_may_be_a_spare_is_marked(
    any_helm: rendering.Helm, pods: dict[str, int], marked: set[str]
) -> None:
    stages = {"stages": {name: {"pods": count} for name, count in pods.items()}}
    release = Release(rendering.documents(any_helm.render(rendering.merged(WATCHED, stages))))
    (monitor,) = release.of("ServiceMonitor")
    for endpoint in monitor["spec"]["endpoints"]:
        job, spares = endpoint["relabelings"]
        assert (job["targetLabel"], spares["targetLabel"]) == ("job", "spares")
        # As Prometheus does: a regex is anchored at both ends.
        components = {pod.component for pod in release.pods}
        assert {one for one in components if re.fullmatch(spares["regex"], one)} == marked


@pytest.mark.parametrize("mode", ["rayservice", "static"])
def test_every_pod_with_figures_is_scraped(any_helm: rendering.Helm, mode: str) -> None:
    """KubeRay's own Service of the head knows nothing of the reconciler's port."""
    values = rendering.merged(WATCHED, {"ray": {"mode": mode}})
    release = Release(rendering.documents(any_helm.render(values)))
    assert list(monitoring.check(release)) == []


def test_the_sample_adapter_answers_every_autoscaler(any_helm: rendering.Helm) -> None:
    """Every custom metric that the chart scales by, for the kind of object that it is asked of."""
    sample = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    answers = set()
    for rule in sample:
        assert exported.faults(rule["seriesQuery"]) == []
        name = rule["seriesQuery"].partition("{")[0]
        answers |= {(name, kind["resource"]) for kind in rule["resources"]["overrides"].values()}
    values = {
        "ray": {"mode": "static"},
        "gateway": {"autoscaling": {"enabled": True, "targetRequestsRunning": 8}},
        "stages": {
            name: {"autoscaling": {"enabled": True}} for name in ("trainer", "reward", "inference")
        },
    }
    release = Release(rendering.documents(any_helm.render(values)))
    asked = set()
    for scaler in release.of("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods":
                asked.add((metric["pods"]["metric"]["name"], "pod"))
            elif metric["type"] == "Object":
                about = metric["object"]["describedObject"]["kind"].lower()
                asked.add((metric["object"]["metric"]["name"], about))
    assert len(asked) == 2
    assert asked <= answers
