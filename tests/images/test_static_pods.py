"""`ray.mode: static` as the chart renders it: the pods' exact commands, as containers on a network
of their own. Head, every stage, two shards, gateway and Redis, each with an address of its own:
they come up, serve, train, and survive a shard's death."""

from __future__ import annotations

import asyncio
import io
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

import rendering
from chart_pods import Cluster
from container_stack import docker, resumed, skip_unless_built, slow_model, until
from plinth.cli.run_client import RunClient
from plinth.cluster.trials import chaos, smoke
from plinth.cluster.trials.visitor import Doors, Visitor, visit
from plinth.gateway.keys import KeyStore
from plinth.shared.connection import connect
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import holds
from plinth.shared.settings import Settings, load_settings
from plinth.v1 import coordinator_pb2
from release import Release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MODEL, SHARDS, TOKENS = "tiny", 2, 400
# The test's own Redis image; nothing else differs from the file that an operator installs.
CHANGES = {
    "images": {"redis": {"repository": "plinth/redis", "tag": "0.1.0"}},
    "redis": {"maxmemory": "128mb"},
}
PIPELINE = """
name: lifecycle
steps:
  corpus: {kind: data, builtin: stdlib, max_bytes: 200_000, validation_fraction: 0.05}
  vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 320}
  dataset: {kind: data, corpus: $corpus, tokenizer: $vocabulary}
  train:
    kind: train
    objective: clm
    dataset: $dataset
    model: {family: llama, layers: 1, hidden: 32, heads: 2, context: 64, tie_embeddings: true}
    batch_size: 4
    steps: 40
    checkpoint_every: 20
    learning_rate: 1e-3
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    skip_unless_built("gateway", "cpu", "redis")
    engines = rendering.engines()
    if not engines:
        pytest.skip("no Helm is installed here; `make chart` gets it")
    local = yaml.safe_load((rendering.CHART / "values-local.yaml").read_text())
    text = engines[0].render(rendering.merged(local, CHANGES))
    folder = tmp_path_factory.mktemp("pods")
    slow_model(folder / MODEL)
    one = Cluster(Release(rendering.documents(text)), folder, f"plinth-{uuid.uuid4().hex[:8]}")
    try:
        one.start()
        give(one.of("trainer")[0].main, folder / MODEL)
        yield one
    finally:
        one.stop()


def give(container: str, folder: Path) -> None:
    """A model's folder and the wish that it be served, as an operator's `kubectl exec` would."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, ".")
    path = f"/tmp/incoming/{MODEL}"
    inside = f"mkdir -p {path} && tar -xC {path} --no-same-owner"
    docker("exec", "-i", container, "sh", "-ec", inside, input=packed.getvalue())
    docker("exec", container, "plinth", "models", "serve", path, "--shards", str(SHARDS))


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


async def held(cluster: Cluster) -> int:
    async with visitor(cluster) as one:
        shards = await Registry(one.redis).replicas("inference")
        return sum(holds(shard, MODEL) for shard in shards)


class Shards:
    """Pods as the trial expects them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.killed: list[str] = []

    def by_address(self, address: str, selector: str) -> str:
        return {one.address: one.main for one in self._cluster.of(selector)}[address]

    def kill(self, container: str) -> None:
        docker("kill", "--signal", "KILL", container)
        self.killed.append(container)


def test_every_pod_is_ready_by_its_own_probe(cluster: Cluster):
    for pod in cluster.pods:
        until(pod.ready, f"{pod.name} is ready")
    components = [pod.pod.component for pod in cluster.pods]
    assert components.count("inference") == SHARDS
    assert {"head", "trainer", "gateway", "redis", "coordinator"} <= set(components)
    assert len({pod.address for pod in cluster.pods}) == len(cluster.pods)


async def test_a_model_is_served_across_them(cluster: Cluster):
    await asyncio.to_thread(until, lambda: asyncio.run(held(cluster)) == SHARDS, "both shards")
    async with visitor(cluster) as one:
        await smoke.run(one, MODEL)


async def test_a_killed_shards_stream_loses_nothing(cluster: Cluster):
    shards, gateway = Shards(cluster), cluster.of("gateway")[0].address
    before = resumed(gateway)
    async with visitor(cluster) as one:
        await chaos.run(one, shards, "inference", MODEL, TOKENS)  # type: ignore[arg-type]
    # The shard did not die after its last token.
    assert resumed(gateway) == before + 1
    docker("start", shards.killed[0])
    await asyncio.to_thread(until, lambda: asyncio.run(held(cluster)) == SHARDS, "both again")


async def test_a_pipeline_trains_across_them(cluster: Cluster):
    redis = connect(settings(cluster).redis_url.get_secret_value())  # type: ignore[union-attr]
    plain, record = await KeyStore(redis).create("team", {"runs", "artifacts"}, "test")
    address = f"{cluster.of('gateway')[0].address}:8081"

    def follow() -> coordinator_pb2.Run:
        with RunClient(address, plain) as client:
            client.submit("lifecycle-1", PIPELINE, {})
            return list(client.watch("lifecycle-1"))[-1]

    try:
        run = await asyncio.to_thread(follow)
    finally:
        await KeyStore(redis).revoke(record.key_id)
        await redis.aclose()
    assert run.state == coordinator_pb2.RUN_STATE_SUCCEEDED, run
    trained = next(step.output for step in run.steps if step.name == "train")
    # What the trainer's pod wrote, a shard's pod reads: they share the claim, as the chart says.
    shard = cluster.of("inference")[0].main
    shown = docker("exec", shard, "plinth", "models", "show", trained)
    assert trained in shown


def test_a_shards_pod_empties_itself_before_it_ends(cluster: Cluster):
    """The preStop hook as the chart has it; a second shard goes on."""
    pod = cluster.of("inference")[0]
    hook = pod.pod.main["lifecycle"]["preStop"]["exec"]["command"]
    docker("exec", pod.main, *hook)  # ends with 0 when the node is empty
    assert not pod.serves()
