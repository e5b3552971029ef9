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
from container_stack import VERSION, docker, image, skip_unless_built, slow_model
from plinth.cluster.trials.visitor import GatewayUrls, Visitor, visit
from plinth.shared.registry import Registry, Replica
from plinth.shared.settings import Settings, load_settings
from release import Document, Release

MODEL, SHARDS = "tiny", 2
# The test's own Redis image; a second tokenizer, without which no pod of that stage can go while it
# is asked; and a drain of a shard of 15 s, so that long answers are cut off by it. Nothing else
# differs from the file that an operator installs.
CHANGES = {
    "stages": {
        "tokenizer": {"pods": 2, "replicas": 2},
        "inference": {"drainSeconds": 50},
    },
    "images": {"redis": {"repository": "plinth/redis", "tag": "0.1.0"}},
    "redis": {"maxmemory": "128mb"},
}
_METADATA = """
import importlib.metadata
(found,) = [f for f in importlib.metadata.files("plinth-llm") if f.name == "METADATA"]
print(found.locate())
"""


@contextmanager
def static_cluster(folder: Path) -> Iterator[Cluster]:
    """Every pod runs and MODEL is wanted on SHARDS shards. Skips where something is missing."""
    skip_unless_built("gateway", "cpu", "redis")
    release = Release(rendered(CHANGES))
    slow_model(folder / MODEL)
    one = Cluster(release, folder, f"plinth-{uuid.uuid4().hex[:8]}")
    try:
        one.start()
        path = give(one.of("trainer")[0].main, folder / MODEL)
        plinth(one, "models", "serve", path, "--shards", str(SHARDS))
        yield one
    finally:
        one.stop()


def rendered(*changes: rendering.Values) -> list[Document]:
    """The chart with values-local.yaml and `changes` to it. Skips without Helm."""
    engines = rendering.engines()
    if not engines:
        pytest.skip("no Helm is installed here; `make chart` gets it")
    local = yaml.safe_load((rendering.CHART / "values-local.yaml").read_text())
    return rendering.documents(engines[0].render(rendering.merged(local, *changes)))


@contextmanager
def images_of(version: str) -> Iterator[None]:
    """plinth/gateway and plinth/cpu with the tag `version`: the built ones, whose installed package
    says that it is of this version. Their code is the same, their containers are others."""
    targets = ("gateway", "cpu")
    for target in targets:
        made = docker("create", image(target))
        try:
            path = docker("run", "--rm", "--entrypoint=python", image(target), "-c", _METADATA)
            text = docker("run", "--rm", "--entrypoint=cat", image(target), path)
            assert f"\nVersion: {VERSION}\n" in text
            text = text.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {version}\n") + "\n"
            packed, content = io.BytesIO(), text.encode()
            with tarfile.open(fileobj=packed, mode="w") as archive:
                entry = tarfile.TarInfo(Path(path).name)
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
            docker("cp", "-", f"{made}:{Path(path).parent}", input=packed.getvalue())
            docker("commit", made, f"plinth/{target}:{version}", timeout_s=300)
        finally:
            docker("rm", made)
    try:
        yield
    finally:
        docker("rmi", "--force", *(f"plinth/{target}:{version}" for target in targets))


def of_version(cluster: Cluster, version: str) -> Release:
    """The cluster's release as `helm upgrade` to images of `version` renders it: with the Secrets
    that are there, which Helm looks up in a cluster."""
    tags = {"images": {"gateway": {"tag": version}, "cpu": {"tag": version}}}
    new = [one for one in rendered(CHANGES, tags) if one["kind"] != "Secret"]
    return Release([*new, *cluster.release.of("Secret")])


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
    """Of the gateway's newest pod."""
    address = cluster.of("gateway")[-1].address
    urls = GatewayUrls(f"http://{address}:8080", f"{address}:8081")
    async with visit(settings(cluster), urls) as one:
        yield one


async def held(cluster: Cluster) -> list[str]:
    """Revisions of MODEL that shards announce, one for each shard: ["tiny@1", "tiny@1"]."""
    shards = await replicas(cluster, "inference")
    bindings = [binding for shard in shards for binding in shard.bindings]
    return sorted(one["artifact"] for one in bindings if one["model"] == MODEL)


async def replicas(cluster: Cluster, stage: str) -> list[Replica]:
    """Those that announce themselves."""
    async with visitor(cluster) as one:
        return await Registry(one.redis).replicas(stage)
