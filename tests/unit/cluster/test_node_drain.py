"""A pod's Ray node is emptied before the pod ends; Ray's GCS is scripted here."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from patience import PATIENCE_S
from plinth.cluster import node_drain
from plinth.cluster.ports import free_port
from plinth.shared.errors import Unavailable
from plinth.shared.registry import Registry, Replica
from plinth.shared.settings import load_settings

ALIVE, DEAD = 0, 1


class Gcs:
    """Nodes by id, and what it was asked to drain."""

    def __init__(self, nodes: dict[str, tuple[str, int]], refusal: str = "") -> None:
        self._nodes, self._refusal = nodes, refusal
        self.drained: list[tuple[str, int]] = []

    def get_all_node_info(self, *, timeout: float) -> dict[Any, Any]:
        return {
            bytes.fromhex(id): SimpleNamespace(node_manager_address=ip, state=state)
            for id, (ip, state) in self._nodes.items()
        }

    def drain_node(self, id: str, reason: int, message: str, deadline_ms: int) -> tuple[bool, str]:
        self.drained.append((id, deadline_ms))
        return not self._refusal, self._refusal


@pytest.fixture
def head() -> Iterator[str]:
    """Where somebody listens, as GCS does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch):
    def answer(client: Gcs) -> Gcs:
        import ray._raylet

        monkeypatch.setattr(ray._raylet, "GcsClient", lambda address: client)
        return client

    return answer


def test_the_living_node_of_this_address_is_drained(gcs: Any, head: str) -> None:
    nodes = {"aa": ("10.0.0.1", DEAD), "bb": ("10.0.0.2", ALIVE), "cc": ("10.0.0.1", ALIVE)}
    client = gcs(Gcs(nodes))
    before = time.time()
    assert node_drain.drain_this_node(head, "10.0.0.1", 90) == "cc"
    ((id, deadline_ms),) = client.drained
    assert id == "cc"
    assert 85 < deadline_ms / 1000 - before < 95


def test_a_node_that_is_not_there_or_not_drained_is_told(gcs: Any, head: str) -> None:
    gcs(Gcs({"aa": ("10.0.0.1", DEAD)}))
    with pytest.raises(Unavailable, match=r"no living Ray node has the address 10\.0\.0\.1"):
        node_drain.drain_this_node(head, "10.0.0.1", 90)
    gcs(Gcs({"aa": ("10.0.0.1", ALIVE)}, refusal="it is busy"))
    with pytest.raises(Unavailable, match="it is busy"):
        node_drain.drain_this_node(head, "10.0.0.1", 90)


def test_a_node_is_empty_once_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not node_drain.wait_silent(port, 0.0)
        assert node_drain.wait_silent(port, 5.0, pause=lambda _: listener.close())


def test_the_hook_ends_with_what_became_of_it(
    gcs: Any, head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head)
    monkeypatch.setenv("POD_IP", "127.0.0.1")
    monkeypatch.setenv("PLINTH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PLINTH_HEALTH_PORT", str(free_port()))
    gcs(Gcs({"aa": ("127.0.0.1", ALIVE)}))
    assert node_drain.main(["--timeout", "1"]) == 0
    gcs(Gcs({}))
    assert node_drain.main(["--timeout", "1", "--patience", "0"]) == 1, (
        "the pod ends all the same, and says so"
    )


def shard(address: str, model: str) -> Replica:
    return Replica("inference", address, address, {"bindings": bindings(model)})


def bindings(*models: str) -> str:
    return json.dumps([{"model": name} for name in models])


HERE, THERE = "10.0.0.1:50051", "10.0.0.2:50051"


@pytest.mark.parametrize(
    ("shards", "wanted", "alone"),
    [
        ([(HERE, "chat")], {"chat": 2}, {"chat"}),
        ([(HERE, "chat")], {"chat": 1}, set()),
        ([(HERE, "chat")], {}, {"chat"}),
        ([(HERE, "chat"), (THERE, "chat")], {"chat": 2}, set()),
        ([(HERE, "chat"), (THERE, "code")], {"chat": 2}, {"chat"}),
        ([(HERE, "chat"), ("10.0.0.1:2", "chat")], {"chat": 2}, {"chat"}),
        ([(THERE, "chat")], {"chat": 2}, set()),
        ([("[fd00::1]:50051", "chat")], {"chat": 2}, set()),
    ],
)
def test_a_shard_is_alone_where_no_other_address_holds_its_model(
    shards: list[tuple[str, str]], wanted: dict[str, int], alone: set[str]
) -> None:
    listed = [shard(address, model) for address, model in shards]
    assert node_drain.held_here_alone(listed, wanted, "10.0.0.1") == alone


def test_an_address_of_the_sixth_version_is_known_in_its_brackets() -> None:
    alone = node_drain.held_here_alone([shard("[fd00::1]:1", "chat")], {"chat": 2}, "fd00::1")
    assert alone == {"chat"}


def test_a_stage_without_models_is_what_its_replicas_hold() -> None:
    one, two = (Replica("tokenizer", address, address) for address in (HERE, THERE))
    assert node_drain.held_here_alone([one], {"tokenizer": 2}, "10.0.0.1") == {"tokenizer"}
    assert node_drain.held_here_alone([one, two], {"tokenizer": 2}, "10.0.0.1") == set()
    assert node_drain.held_here_alone([one], {"tokenizer": 1}, "10.0.0.1") == set()


def test_a_head_that_is_away_is_told_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="refused"):
        node_drain.drain_this_node(f"127.0.0.1:{free_port()}", "10.0.0.1", 90)
    assert time.monotonic() - began < 20  # Ray's own client: 40 s


def test_a_head_that_is_replaced_too_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | str] = [Unavailable("no head"), RuntimeError("still none"), "cc"]

    def ask(address: str, node_ip: str, deadline_s: float) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(node_drain, "drain_this_node", ask)
    end = time.monotonic() + 30
    drain = partial(node_drain.drain_once_answered, "head", "10.0.0.1", 60, pause=lambda _: None)
    assert drain(end) == "cc"
    answers = [Unavailable("no head")]
    with pytest.raises(Unavailable):
        drain(0.0)


async def test_a_pod_waits_for_another_shard_of_its_model(
    redis_server: str, redis_client: Any
) -> None:
    registry, settings = (
        Registry(redis_client, ttl_s=PATIENCE_S),
        load_settings(redis_url=redis_server),
    )
    # The second is called like a stage that has one replica.
    models = json.dumps([{"name": "chat", "shards": 2}, {"name": "reward", "shards": 2}])
    told = {"models": models, "stages": json.dumps({"tokenizer": 2, "reward": 1})}
    await registry.announce("reconciler", "r", "10.0.0.9:1", told)
    await registry.announce("inference", "a", "10.0.0.1:1", {"bindings": bindings("chat")})
    asked = (settings, "inference", "10.0.0.1")
    assert not await node_drain.await_others(*asked, 0.0)
    waiting = asyncio.create_task(node_drain.await_others(*asked, 30))
    await registry.announce("inference", "b", "10.0.0.2:1", {"bindings": bindings("chat")})
    assert await waiting
    await registry.announce("tokenizer", "t", "10.0.0.1:1", {})
    await registry.announce("reward", "r", "10.0.0.1:1", {})
    assert not await node_drain.await_others(settings, "tokenizer", "10.0.0.1", 0.0)
    assert await node_drain.await_others(settings, "reward", "10.0.0.1", 0.0)
    await registry.withdraw("reconciler", "r")  # its head is replaced: who knows
    assert not await node_drain.await_others(settings, "reward", "10.0.0.1", 0.0)


async def test_nobody_waits_for_a_redis_that_is_away() -> None:
    settings = load_settings(redis_url=f"redis://127.0.0.1:{free_port()}")
    began = time.monotonic()
    assert await node_drain.await_others(settings, "inference", "10.0.0.1", 60)
    assert time.monotonic() - began < 30
