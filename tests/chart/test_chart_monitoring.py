"""Who is scraped as what: a pod that waits for a replica must not be told as one that is down."""

from __future__ import annotations

import re
from typing import Any

import pytest

import monitoring
import rendering
from release import Release

WATCHED: dict[str, Any] = {
    "networkPolicy": {"metrics": {"from": [{"namespaceSelector": {}}]}},
    "monitoring": {"serviceMonitor": {"enabled": True}},
}


@pytest.mark.parametrize(
    ("pods", "marked"),
    [({}, {"inference"}), ({"tokenizer": 2}, {"inference", "tokenizer"})],
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
