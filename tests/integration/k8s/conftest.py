"""`plinth k8s` against an API server on loopback; where marked `cluster`, against the one that
KUBECONFIG names, if it is set."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube_api import KubeApi
from kube_cluster import Cluster, RealCluster, ScriptedCluster
from kube_gateway import ScriptedGateway
from kube_release import CORE, static_pods, static_release
from plinth.v1 import deployments_pb2


@pytest.fixture
def kube() -> Iterator[KubeApi]:
    with KubeApi() as running:
        yield running


@pytest.fixture
def kubeconfig(kube: KubeApi, tmp_path: Path) -> Path:
    return kube.kubeconfig(tmp_path)


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    with ScriptedGateway() as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A real one where there is one, else the scripted one."""
    there: Cluster
    if os.environ.get("KUBECONFIG"):
        there = RealCluster(tmp_path)
    else:
        there = ScriptedCluster(request.getfixturevalue("kube"), tmp_path)
    yield there
    there.close()


@pytest.fixture
def released(kube: KubeApi) -> None:
    """A static release and its pods."""
    static_release(kube)
    static_pods(kube)


@pytest.fixture
def well(kube: KubeApi, gateway: ScriptedGateway) -> KubeApi:
    """A static release in which nothing is wrong."""
    static_release(kube)
    static_pods(kube)
    secret = {"name": "plinth-secrets", "key": "cluster-token"}
    for path in [path for path in kube.objects if "/pods/" in path]:
        found = kube.objects[path]
        found["spec"]["containers"][0]["env"] = [
            {"name": "T", "valueFrom": {"secretKeyRef": secret}}
        ]
        kube.put(path, found)
    data = {"cluster-token": base64.b64encode(b"a-secret-value").decode()}
    kube.put(f"{CORE}/secrets/plinth-secrets", {"kind": "Secret", "metadata": {}, "data": data})
    claim = {"kind": "PersistentVolumeClaim", "metadata": {}, "status": {"phase": "Bound"}}
    for name in ("plinth-store", "data-plinth-redis-0"):
        kube.put(f"{CORE}/persistentvolumeclaims/{name}", claim)
    gateway.serve("chat", "chat@7", 2)
    gateway.store("chat", 7, "prod")
    gateway.status.models.add(
        model="chat",
        artifact="chat@7",
        shards=2,
        ready_shards=2,
        state=deployments_pb2.DEPLOYMENT_STATE_READY,
    )
    return kube
