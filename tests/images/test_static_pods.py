"""`ray.mode: static` as the chart renders it: the pods' exact commands, as containers on a network
of their own. Head, every stage, two shards, gateway and Redis, each with an address of its own:
they come up, serve, train, and survive a shard's death."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from chart_pods import Cluster
from container_stack import docker, resumed, until
from plinth.cli.run_client import RunClient
from plinth.cluster.trials import chaos, smoke
from plinth.gateway.keys.api_keys import KeyStore
from plinth.shared.connection import connect
from plinth.v1 import runs_pb2
from static_release import MODEL, SHARDS, held, plinth, settings, static_cluster, visitor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TOKENS = 400
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
    with static_cluster(tmp_path_factory.mktemp("pods")) as one:
        yield one


def all_held(cluster: Cluster) -> bool:
    return len(asyncio.run(held(cluster))) == SHARDS


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
    await asyncio.to_thread(until, lambda: all_held(cluster), "both shards")
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
    await asyncio.to_thread(until, lambda: all_held(cluster), "both again")


async def test_a_pipeline_trains_across_them_and_its_model_answers(cluster: Cluster):
    redis = connect(settings(cluster).redis_url.get_secret_value())  # type: ignore[union-attr]
    plain, record = await KeyStore(redis).create("team", {"runs", "artifacts"}, "test")
    address = f"{cluster.of('gateway')[0].address}:8081"

    def follow() -> runs_pb2.Run:
        with RunClient(address, plain) as client:
            client.submit("lifecycle-1", PIPELINE, {})
            return list(client.watch("lifecycle-1"))[-1]

    try:
        run = await asyncio.to_thread(follow)
    finally:
        await KeyStore(redis).revoke(record.key_id)
        await redis.aclose()
    assert run.status.state == runs_pb2.RUN_STATE_SUCCEEDED, run
    made = next(step.artifact for step in run.status.steps if step.step_id == "train")
    trained = made.removeprefix("artifacts/")
    # What the trainer's pod wrote, a shard's pod reads: they share the claim, as the chart says.
    shard = cluster.of("inference")[0].main
    shown = docker("exec", shard, "plinth", "models", "show", trained)
    assert trained in shown
    # One shard makes room for it, and it answers at the door.
    plinth(cluster, "models", "serve", MODEL, "--shards", "1")
    plinth(cluster, "models", "serve", trained, "--shards", "1")
    name = trained.partition("@")[0]
    async with visitor(cluster) as one:

        def served() -> bool:
            return name in [model["id"] for model in one.rest("/v1/models")["data"]]

        await asyncio.to_thread(until, served, f"{name} is served")
        body = {"model": name, "prompt": "import os", "max_tokens": 8, "temperature": 0}
        said = await asyncio.to_thread(one.rest, "/v1/completions", body)
        again = await asyncio.to_thread(one.rest, "/v1/completions", body)
    assert said["usage"]["completion_tokens"] >= 1
    assert said["choices"][0]["text"] == again["choices"][0]["text"]


def test_a_shards_pod_empties_itself_before_it_ends(cluster: Cluster):
    """The preStop hook as the chart has it; a second shard goes on."""
    pod = cluster.of("inference")[0]
    hook = pod.pod.main["lifecycle"]["preStop"]["exec"]["command"]
    docker("exec", pod.main, *hook)  # ends with 0 when the node is empty
    assert not pod.serves()
