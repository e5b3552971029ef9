"""What the chart refuses or keeps because of what is in the cluster already (Helm's `lookup`)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

import rendering

APPS = {"groupVersion": "apps/v1", "version": "v1"}
RAY = {"groupVersion": "ray.io/v1", "version": "v1"}
CLAIM = "PersistentVolumeClaim"
PLACES = {
    "RayService": ("/apis/ray.io/v1", "ray.io/v1"),
    "StatefulSet": ("/apis/apps/v1", "apps/v1"),
    "Deployment": ("/apis/apps/v1", "apps/v1"),
    CLAIM: ("/api/v1", "v1"),
}


def listed(**kinds: str) -> list[dict[str, Any]]:
    """Resources by name, as discovery tells of them."""
    return [
        {
            "name": name,
            "singularName": "",
            "namespaced": True,
            "kind": kind,
            "verbs": ["get", "list"],
        }
        for name, kind in kinds.items()
    ]


@contextmanager
def cluster(
    config_maps: list[dict[str, Any]],
    secrets: dict[str, dict[str, str]] | None = None,
    sets: dict[str, int] | None = None,
    ending: dict[str, str] | None = None,
    enforced: str = "",
) -> Iterator[str]:
    """An API server that knows ConfigMaps, Secrets and StatefulSets (by their pods), as far as
    Helm's `lookup` asks. `ending`: kind and name of what is being deleted.
    `enforced`: the namespace's level of PodSecurity."""
    core = listed(configmaps="ConfigMap", secrets="Secret", persistentvolumeclaims=CLAIM)
    apps = listed(statefulsets="StatefulSet", deployments="Deployment")
    core += [{**listed(namespaces="Namespace")[0], "namespaced": False}]
    ray = listed(rayservices="RayService")
    groups = [
        {"name": one["groupVersion"].partition("/")[0], "versions": [one], "preferredVersion": one}
        for one in (APPS, RAY)
    ]
    base = "/api/v1/namespaces/models"
    answers = {
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": core},
        "/apis/apps/v1": {"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": apps},
        "/apis/ray.io/v1": {
            "kind": "APIResourceList",
            "groupVersion": "ray.io/v1",
            "resources": ray,
        },
        "/api/v1/namespaces/models": {
            "kind": "Namespace",
            "apiVersion": "v1",
            "metadata": {
                "name": "models",
                "labels": {"pod-security.kubernetes.io/enforce": enforced} if enforced else {},
            },
        },
        "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
        f"{base}/configmaps": {"kind": "ConfigMapList", "apiVersion": "v1", "items": config_maps},
    }
    for name, data in (secrets or {}).items():
        metadata = {"name": name, "namespace": "models"}
        secret = {"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data}
        answers[f"{base}/secrets/{name}"] = secret
    for name, replicas in (sets or {}).items():
        answers[f"/apis/apps/v1/namespaces/models/statefulsets/{name}"] = {
            "kind": "StatefulSet",
            "apiVersion": "apps/v1",
            "metadata": {"name": name, "namespace": "models"},
            "spec": {"replicas": replicas},
        }

    for kind, name in (ending or {}).items():
        path, version = PLACES[kind]
        answers[f"{path}/namespaces/models/{kind.lower()}s/{name}"] = {
            "kind": kind,
            "apiVersion": version,
            "metadata": {
                "name": name,
                "namespace": "models",
                "deletionTimestamp": "2026-11-30T12:00:00Z",
                "finalizers": ["ray.io/rayservice-finalizer"],
            },
        }

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            body = answers.get(urlsplit(self.path).path)
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
            missing |= {"reason": "NotFound", "metadata": {}}
            text = json.dumps(body or missing).encode()
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def rendered_in(url: str, values: dict[str, Any], chart_at: Path = rendering.CHART) -> str:
    """Rendered by Helm 4 with a cluster to look into. HelmError with the chart's refusal."""
    config = pytest.importorskip("helm_python.config", reason="`make chart` installs Helm 4")
    from helm_python import chart

    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    with config.Config(
        namespace="models", kubeconfig_content=yaml.safe_dump(kubeconfig)
    ) as connection:
        loaded = chart.Chart.load(str(chart_at))
        made = connection.render(loaded, values, name="demo", namespace="models")
    return "\n---\n".join(text for name, text in made.items() if not name.endswith("NOTES.txt"))


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


@pytest.mark.parametrize(
    ("kind", "name", "mode"),
    [
        ("RayService", "demo-plinth", "rayservice"),
        ("StatefulSet", "demo-plinth-head", "static"),
        ("StatefulSet", "demo-plinth-redis", "rayservice"),
        ("Deployment", "demo-plinth-gateway", "rayservice"),
        (CLAIM, "demo-plinth-store", "static"),
        (CLAIM, "demo-plinth-jobs", "static"),
    ],
)
def test_what_is_being_deleted_is_not_taken_over(
    kind: str, name: str, mode: str, tmp_path: Path
) -> None:
    """Helm patches an object of its name that is there, and it vanishes under the new release."""
    values = {"ray": {"mode": mode}, "jobs": {"persistence": {"enabled": True}}}
    refusal = (
        f"{kind}/{name} of an earlier release is being deleted since 2026-11-30T12:00:00Z.*"
        f"kubectl -n models wait --for=delete {kind.lower()}/{name} --timeout=10m"
    )
    chart = tmp_path / "plinth"
    shutil.copytree(rendering.CHART, chart)
    # This library asks no cluster for its kinds, as helm does.
    validate = chart / "templates" / "validate.yaml"
    known = '(.Capabilities.APIVersions.Has "ray.io/v1/RayService")'
    validate.write_text(validate.read_text().replace(known, "true"))
    with cluster([], ending={kind: name}) as url, pytest.raises(Exception, match=refusal):
        rendered_in(url, values, chart)
    with cluster([], ending={kind: f"other-{name}"}) as url:
        assert "kind: NetworkPolicy" in rendered_in(url, values, chart)


SECRET_KEYS = ("cluster-token", "auth_token", "redis-password", "api-key")


def secret_of(text: str) -> dict[str, str]:
    return {key: re.search(rf"^  {key}: (\S+)$", text, re.MULTILINE)[1] for key in SECRET_KEYS}
