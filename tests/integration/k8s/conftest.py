"""`plinth k8s` against an API server on loopback; where marked `cluster`, against the one that
KUBECONFIG names, if it is set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kube_api import KubeApi
from kube_cluster import Cluster, RealCluster, ScriptedCluster
from kube_gateway import ScriptedGateway


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
