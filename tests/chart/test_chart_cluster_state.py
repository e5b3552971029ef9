"""What the chart refuses or keeps because of what is in the cluster already (Helm's `lookup`)."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from lookups import cluster, ending, holding, path_of, rendered_in, serving

import rendering


def config_map(release_name: str, schema: int, redis: str) -> dict[str, Any]:
    """What a release leaves for others to see."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{release_name}-plinth-config",
            "namespace": "models",
            "labels": {
                "app.kubernetes.io/part-of": "plinth",
                "app.kubernetes.io/instance": release_name,
            },
            "annotations": {
                "plinth.dev/redis-schema": str(schema),
                "plinth.dev/redis": redis,
            },
        },
    }


SHARED = {"redis": {"enabled": False, "external": {"host": "redis.example.com"}}}


def test_two_releases_on_one_redis_database_are_refused() -> None:
    there = [config_map("other", 1, "redis.example.com:6379/1")]
    with cluster(there) as url:
        with pytest.raises(Exception, match="two releases would serve each other's queues"):
            rendered_in(url, SHARED)
        apart = rendering.merged(SHARED, {"redis": {"database": 2}})
        assert "redis.example.com:6379/2" in rendered_in(url, apart)


def test_a_downgrade_over_a_newer_schema_is_refused_with_advice() -> None:
    newer = [config_map("demo", 2, "demo-plinth-redis:6379/1")]
    refusal = r"holds schema 2 and this chart .* knows schema 1"
    with cluster(newer) as url, pytest.raises(Exception, match=refusal):
        rendered_in(url, {})
    with cluster([config_map("demo", 1, "demo-plinth-redis:6379/1")]) as url:
        assert "kind: RayService" in rendered_in(url, {})


def test_an_upgrade_keeps_the_secrets_and_an_install_makes_new_ones() -> None:
    kept = {key: f"a2VwdC0{index}" for index, key in enumerate(SECRET_KEYS)}
    with cluster([], {"demo-plinth-secrets": kept}) as url:
        assert secret_of(rendered_in(url, {})) == kept
    with cluster([]) as url:
        first, second = (secret_of(rendered_in(url, {})) for _ in range(2))
        assert all(first[key] != second[key] for key in SECRET_KEYS)
        assert all(len(base64.b64decode(first[key])) == 48 for key in SECRET_KEYS)


@pytest.mark.parametrize(("there", "kept"), [(None, None), (5, 5), (1, 2), (0, 2)])
def test_an_upgrade_leaves_pods_to_their_autoscaler(there: int | None, kept: int | None) -> None:
    """Switched on, it takes over what there is: Kubernetes would set a number that is gone to 1."""
    values = {
        "ray": {"mode": "static"},
        "stages": {"inference": {"pods": 2, "maxPods": 6, "autoscaling": {"enabled": True}}},
    }
    sets = {} if there is None else {"demo-plinth-inference": there}
    with cluster([], sets=sets) as url:
        found = [one for one in yaml.safe_load_all(rendered_in(url, values)) if one]
    (stage,) = [
        one
        for one in found
        if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "demo-plinth-inference"
    ]
    assert stage["spec"].get("replicas") == kept


ROUTE: dict[str, Any] = {"enabled": True, "parentRefs": [{"name": "edge"}]}
EVERYTHING: dict[str, Any] = {
    "jobs": {"persistence": {"enabled": True}},
    "networkPolicy": {"metrics": {"from": [{"namespaceSelector": {}}]}},
    "tls": {"enabled": True, "certManager": {"enabled": True, "issuerRef": {"name": "ca"}}},
    "gateway": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "host": "plinth.example.com"},
        "httpRoute": {**ROUTE, "hostnames": ["rest.example.com"]},
        "grpcRoute": {**ROUTE, "hostnames": ["grpc.example.com"]},
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "rules": {"enabled": True},
        "dashboards": {"enabled": True},
    },
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}}],
}


@pytest.fixture
def any_cluster(tmp_path: Path) -> Path:
    """The chart where each kind is known: this library asks no cluster for them, as helm does."""
    chart = tmp_path / "plinth"
    shutil.copytree(rendering.CHART, chart)
    path = chart / "templates" / "validate-ending.yaml"
    asked = '($.Capabilities.APIVersions.Has (printf "%s/%s" $one.apiVersion $one.kind))'
    assert asked in path.read_text()
    path.write_text(path.read_text().replace(asked, "true"))
    return chart


@pytest.mark.parametrize("mode", ["static", "rayservice"])
def test_what_is_being_deleted_is_not_taken_over(
    mode: str, any_helm: rendering.Helm, any_cluster: Path
) -> None:
    """Helm patches an object of its name that is there, and it vanishes under the new release. One
    of each kind of which the chart makes any, and of others' objects."""
    values = {**EVERYTHING, "ray": {"mode": mode}}
    made = [
        one
        for one in rendering.documents(any_helm.render(values))
        if "helm.sh/hook" not in one["metadata"].get("annotations", {})
    ]
    (mine,) = [one for one in made if one["metadata"]["name"] == "mine"]
    tried = [mine, *{one["kind"]: one for one in made if one is not mine}.values()]
    assert len(tried) > 15
    answers = holding()
    with serving(answers) as url:
        for one in tried:
            path = path_of(one)
            answers[path] = ending(one)
            kind, name = one["kind"], one["metadata"]["name"]
            refusal = (
                f"{kind}/{name} of an earlier release is being deleted since 2026-11-30T12:00:00Z.*"
                f"kubectl -n models wait --for=delete {kind.lower()}/{name} --timeout=10m"
            )
            with pytest.raises(Exception, match=refusal):
                rendered_in(url, values, any_cluster)
            answers[f"{path}-other"] = answers.pop(path)
        assert "kind: NetworkPolicy" in rendered_in(url, values, any_cluster)


def test_no_template_is_left_out_of_them() -> None:
    folder = rendering.CHART / "templates"
    text = (folder / "validate-ending.yaml").read_text()
    listed = re.search(r"range \$file := list (.*?) -\}\}", text)
    assert listed is not None
    made = {path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("validate")}
    assert set(re.findall(r'"([^"]+)"', listed[1])) == made


SECRET_KEYS = ("cluster-token", "auth_token", "redis-password", "api-key")


def secret_of(text: str) -> dict[str, str]:
    return {key: re.search(rf"^  {key}: (\S+)$", text, re.MULTILINE)[1] for key in SECRET_KEYS}
