"""A release of the chart with `ray.mode: static`, started on a Docker engine with a model of two
shards: what the slow tests in tests/images stand on."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import yaml

import rendering
from chart_pods import Cluster
from container_stack import docker, skip_unless_built, slow_model
from plinth.cluster.trials.visitor import Doors, Visitor, visit
from plinth.shared.registry import Registry
from plinth.shared.settings import Settings, load_settings
from release import Release

MODEL, SHARDS = "tiny", 2
# The test's own Redis image; nothing else differs from the file that an operator installs.
CHANGES = {
    "images": {"redis": {"repository": "plinth/redis", "tag": "0.1.0"}},
    "redis": {"maxmemory": "128mb"},
}


@contextmanager
def static_cluster(folder: Path) -> Iterator[Cluster]:
    """Every pod runs and MODEL is wanted on SHARDS shards. Skips where something is missing."""
    skip_unless_built("gateway", "cpu", "redis")
    engines = rendering.engines()
    if not engines:
        pytest.skip("no Helm is installed here; `make chart` gets it")
    local = yaml.safe_load((rendering.CHART / "values-local.yaml").read_text())
    text = engines[0].render(rendering.merged(local, CHANGES))
    slow_model(folder / MODEL)
    one = Cluster(Release(rendering.documents(text)), folder, f"plinth-{uuid.uuid4().hex[:8]}")
    try:
        one.start()
        path = give(one.of("trainer")[0].main, folder / MODEL)
        plinth(one, "models", "serve", path, "--shards", str(SHARDS))
        yield one
    finally:
        one.stop()


def give(container: str, folder: Path) -> str:
    """Copies a model's folder in, as an operator's `kubectl cp` would; where it lies there."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, ".")
    path = f"/tmp/incoming/{folder.name}"
    inside = f"mkdir -p {path} && tar -xC {path} --no-same-owner"
    docker("exec", "-i", container, "sh", "-ec", inside, input=packed.getvalue())
    return path


def plinth(cluster: Cluster, *arguments: str) -> str:
    """What the command says in the trainer's pod."""
    return docker("exec", cluster.of("trainer")[0].main, "plinth", *arguments)


def settings(cluster: Cluster) -> Settings:
    pod = cluster.of("redis")[0]
    reference = next(v for v in pod.pod.main["env"] if v["name"] == "REDISCLI_AUTH")
    secret = reference["valueFrom"]["secretKeyRef"]
    password = cluster.secret(secret["name"], secret["key"])
    return load_settings(redis_url=f"redis://:{password}@{pod.address}:6379/1")


@asynccontextmanager
async def visitor(cluster: Cluster) -> AsyncIterator[Visitor]:
    address = cluster.of("gateway")[0].address
    doors = Doors(f"http://{address}:8080", f"{address}:8081")
    async with visit(settings(cluster), doors) as one:
        yield one


async def held(cluster: Cluster) -> list[str]:
    """Revisions of MODEL that shards announce, one for each shard: ["tiny@1", "tiny@1"]."""
    async with visitor(cluster) as one:
        shards = await Registry(one.redis).replicas("inference")
    bindings = [binding for shard in shards for binding in shard.bindings]
    return sorted(one["artifact"] for one in bindings if one["model"] == MODEL)
