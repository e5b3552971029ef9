"""The way of docs/kubernetes.md from a release without the head's port to one with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ray_rules
import rendering
from release import Release

PAGE = Path(__file__).parents[2] / "docs" / "kubernetes.md"


def test_the_patch_gives_a_running_cluster_the_port(any_helm: rendering.Helm) -> None:
    release = Release(rendering.documents(any_helm.render({})))
    (service,) = release.of("RayService")
    (found,) = re.findall(r"-p '(\[\{.*\}\])'", PAGE.read_text())
    (patch,) = json.loads(found)
    cluster = {"spec": service["spec"]["rayClusterConfig"]}
    ports = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    with_port = list(ports)
    ports[:] = [port for port in ports if port["name"] != "serve"]
    assert any("no port named serve" in one for one in ray_rules.check(release))
    *path, end = patch["path"].strip("/").split("/")
    assert (patch["op"], end) == ("add", "-")
    node = cluster
    for step in path:
        node = node[int(step) if isinstance(node, list) else step]
    node.append(patch["value"])
    assert list(ray_rules.check(release)) == []
    by_name = [{port["name"]: port for port in one} for one in (ports, with_port)]
    assert by_name[0] == by_name[1], "as the chart's own"
