"""Sizes in each way that YAML and Kubernetes write them: compared, rendered and told alike."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from lookups import holding, path_of, rendered_in, serving

import immutable
import rendering
from release import Release

GIB = 1 << 30
WHOLE: dict[str, Any] = {
    "ray": {"mode": "static"},
    "cache": {"sizeLimit": 50 * GIB},
    "defaults": {"shm": 2 * GIB},
    "jobs": {"persistence": {"enabled": True, "size": 100 * GIB}},
    "redis": {"persistence": {"size": 8 * GIB}},
    "store": {"persistence": {"size": 100 * GIB}},
    "stages": {"inference": {"resources": {"limits": {"ephemeral-storage": 100 * GIB}}}},
}


def test_whole_numbers_are_sizes(any_helm: rendering.Helm) -> None:
    release = Release(rendering.documents(any_helm.render(WHOLE)))
    claims = [
        *release.of("PersistentVolumeClaim"),
        *release.named("StatefulSet", "demo-plinth-redis")["spec"]["volumeClaimTemplates"],  # type: ignore[index]
    ]
    found = sorted(one["spec"]["resources"]["requests"]["storage"] for one in claims)
    assert found == [8 * GIB, 100 * GIB, 100 * GIB]
    (shard,) = [pod for pod in release.pods if pod.component == "inference"]
    volumes = {one["name"]: one for one in shard.spec["volumes"]}
    assert volumes["cache"]["emptyDir"]["sizeLimit"] == 50 * GIB
    with pytest.raises(rendering.Refused, match=f"and its cache alone {200 * GIB}: it would be"):
        any_helm.render(rendering.merged(WHOLE, {"cache": {"sizeLimit": 200 * GIB}}))


@pytest.mark.parametrize("of", ["redis", "store", "jobs"])
def test_what_was_installed_by_whole_numbers_is_upgraded(of: str, any_helm: rendering.Helm) -> None:
    """A rendering finds its own volumes again, and tells of others in words."""
    made = rendering.documents(any_helm.render(WHOLE))
    kept = ("PersistentVolumeClaim", "StatefulSet", "Deployment")
    there = [one for one in made if one["kind"] in kept]
    with serving(holding(*there)) as url:
        assert f"storage: {8 * GIB}" in rendered_in(url, WHOLE)
        less = rendering.merged(WHOLE, {of: {"persistence": {"size": 4 * GIB}}})
        with pytest.raises(Exception, match=rf"size is {4 * GIB} and .*size=\d+") as refused:
            rendered_in(url, less)
        assert "%!" not in str(refused.value) and "e+" not in str(refused.value)
    assert all(path_of(one) for one in there)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("1Ti", "1024Gi"),
        ("0.5Gi", "512Mi"),
        ("2000M", "2G"),
        (8, "8000m"),
        (8 * GIB, "8Gi"),
        ("5e9", "5G"),
        ("1E3", "1k"),
    ],
)
def test_sizes_are_compared_by_their_bytes(
    one: Any, two: str, any_helm: rendering.Helm, tmp_path: Path
) -> None:
    chart = tmp_path / "plinth"
    shutil.copytree(rendering.CHART, chart)
    sizes = json.dumps([one, two])
    (chart / "templates" / "sizes.yaml").write_text(
        f'sizes: {{{{- range fromJsonArray {sizes!r} }}}} {{{{ include "plinth.bytes" . }}}}'
        "{{- end }}\n".replace("'", "`")
    )
    text = any_helm.render({}, chart=chart)
    (line,) = re.findall(r"^sizes: (.*)$", text, re.MULTILINE)
    first, second = line.split()
    claim = {"spec": {"resources": {"requests": {"storage": one}}}}
    assert first == second == f"{immutable.size_of(claim):.0f}"
