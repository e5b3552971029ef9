"""A cluster for Helm's `lookup` to look into, and the chart rendered there by Helm 4."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

import rendering

Json = dict[str, Any]
# What discovery tells of: group and version → kinds.
KINDS = {
    "v1": ("ConfigMap", "Secret", "PersistentVolumeClaim", "Service", "ServiceAccount"),
    "apps/v1": ("StatefulSet", "Deployment"),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "cert-manager.io/v1": ("Certificate",),
    "gateway.networking.k8s.io/v1": ("HTTPRoute", "GRPCRoute"),
    "monitoring.coreos.com/v1": ("ServiceMonitor", "PodMonitor", "PrometheusRule"),
    "networking.k8s.io/v1": ("NetworkPolicy", "Ingress"),
    "policy/v1": ("PodDisruptionBudget",),
    "ray.io/v1": ("RayService",),
}


def _plural(kind: str) -> str:
    word = kind.lower()
    if word.endswith("s"):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("cy") else f"{word}s"


def path_of(one: Mapping[str, Any]) -> str:
    """Where the API server keeps an object of the namespace."""
    base = "api" if one["apiVersion"] == "v1" else "apis"
    where = f"/{base}/{one['apiVersion']}/namespaces/{rendering.NAMESPACE}"
    return f"{where}/{_plural(one['kind'])}/{one['metadata']['name']}"


def ending(one: Mapping[str, Any]) -> Json:
    """The object while it is being deleted."""
    when = {"deletionTimestamp": "2026-11-30T12:00:00Z", "finalizers": ["example.com/waits"]}
    return {**one, "metadata": {**one["metadata"], **when}}


def _discovery() -> dict[str, Json]:
    found: dict[str, Json] = {}
    groups = []
    for group, kinds in KINDS.items():
        resources: list[Json] = [
            {
                "name": _plural(kind),
                "singularName": "",
                "namespaced": True,
                "kind": kind,
                "verbs": ["get", "list"],
            }
            for kind in kinds
        ]
        if group == "v1":
            resources.append(
                {**resources[0], "name": "namespaces", "kind": "Namespace", "namespaced": False}
            )
        else:
            name, _, version = group.partition("/")
            one = {"groupVersion": group, "version": version}
            groups.append({"name": name, "versions": [one], "preferredVersion": one})
        told = {"kind": "APIResourceList", "groupVersion": group, "resources": resources}
        found[f"/{'api' if group == 'v1' else 'apis'}/{group}"] = told
    found["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    found["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    found["/version"] = {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}
    return found


def _asked_for(answers: Mapping[str, Json]) -> type[BaseHTTPRequestHandler]:
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

    return Handler


@contextmanager
def serving(answers: Mapping[str, Json]) -> Iterator[str]:
    """An API server that knows kinds, and of objects what `answers` has by path. Its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _asked_for(answers))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def holding(*objects: Json) -> dict[str, Json]:
    """Answers of a cluster with the namespace's objects, and no ConfigMap beside them."""
    space = rendering.NAMESPACE
    maps = [one for one in objects if one["kind"] == "ConfigMap"]
    return {
        **_discovery(),
        f"/api/v1/namespaces/{space}/configmaps": {
            "kind": "ConfigMapList",
            "apiVersion": "v1",
            "items": maps,
        },
        **{path_of(one): one for one in objects},
    }


@contextmanager
def cluster(
    config_maps: Sequence[Json],
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    sets: Mapping[str, int] | None = None,
    enforced: str = "",
) -> Iterator[str]:
    """A cluster that holds ConfigMaps, Secrets and StatefulSets (by their pods). `enforced`: the
    namespace's level of PodSecurity."""
    there = [
        *config_maps,
        *(
            {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": name}, "data": data}
            for name, data in (secrets or {}).items()
        ),
        *(
            {
                "kind": "StatefulSet",
                "apiVersion": "apps/v1",
                "metadata": {"name": name},
                "spec": {"replicas": replicas},
            }
            for name, replicas in (sets or {}).items()
        ),
    ]
    labels = {"pod-security.kubernetes.io/enforce": enforced} if enforced else {}
    space = {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"name": rendering.NAMESPACE, "labels": labels},
    }
    answers = {**holding(*there), f"/api/v1/namespaces/{rendering.NAMESPACE}": space}
    with serving(answers) as url:
        yield url


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
