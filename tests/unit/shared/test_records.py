"""Desired state: the newest record wins, and nobody overwrites what he hasn't seen."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plinth.internal.v1.deployments_pb2 import DeploymentRecord
from plinth.shared.errors import Aborted, InvalidArgument, NotFound
from plinth.shared.records import DeploymentRecords
from plinth.shared.store import ArtifactStore


@pytest.fixture
def records(store: ArtifactStore, tmp_path: Path) -> DeploymentRecords:
    (tmp_path / "a").write_text("1")
    for digest in "ab":
        store.publish("model", "model", tmp_path / "a", input_digest=digest)
    store.publish("words", "tokenizer", tmp_path / "a")
    return DeploymentRecords(store)


def test_put_list_delete(records: DeploymentRecords, store: ArtifactStore) -> None:
    assert records.list() == [] and records.get("chat") is None
    put = records.put(DeploymentRecord(name="chat", artifact="model", kv_cache_bytes=1 << 40))
    assert put.deployment == DeploymentRecord(
        name="chat", artifact="model@2", shards=1, kv_cache_bytes=1 << 40
    )
    assert put.revision == 1
    same = DeploymentRecord(name="chat", artifact="model", kv_cache_bytes=1 << 40, shards=1)
    assert records.put(same).revision == 1, "what is wanted already is no change"
    records.put(DeploymentRecord(name="chat", artifact="model@1", shards=2))
    records.put(DeploymentRecord(name="beta", artifact="model"))
    others = DeploymentRecords(ArtifactStore(store.url))
    assert [(d.name, d.artifact, d.shards) for d in others.list()] == [
        ("beta", "model@2", 1),
        ("chat", "model@1", 2),
    ]
    records.delete("chat")
    assert [d.name for d in others.list()] == ["beta"]
    with pytest.raises(NotFound):
        others.delete("chat")
    with pytest.raises(NotFound):
        others.delete("never")
    assert records.put(DeploymentRecord(name="chat", artifact="model")).revision == 4


def test_expected_fences(records: DeploymentRecords) -> None:
    old = records.put(DeploymentRecord(name="chat", artifact="model@1"), expected=None)
    new = records.put(DeploymentRecord(name="chat", artifact="model@2"), expected=old.revision)
    for stale in (None, old.revision, 7):
        with pytest.raises(Aborted):
            records.put(DeploymentRecord(name="chat", artifact="model@1"), expected=stale)
    with pytest.raises(Aborted):
        records.delete("chat", expected=old.revision)
    records.delete("chat", expected=new.revision)


def test_rival_coordinators(records: DeploymentRecords, store: ArtifactStore) -> None:
    barrier = threading.Barrier(5)

    def put(shards: int) -> bool:
        own = DeploymentRecords(ArtifactStore(store.url))
        barrier.wait()
        try:
            own.put(DeploymentRecord(name="chat", artifact="model", shards=shards), expected=None)
        except Aborted:
            return False
        return True

    with ThreadPoolExecutor(5) as pool:
        won = list(pool.map(put, range(1, 6)))
    assert sum(won) == 1
    assert records.list()[0].shards == won.index(True) + 1


@pytest.mark.parametrize(
    "bad",
    [
        DeploymentRecord(name="../x", artifact="model"),
        DeploymentRecord(name="", artifact="model"),
        DeploymentRecord(name="chat", artifact=""),
        DeploymentRecord(name="chat", artifact="words"),
        DeploymentRecord(name="chat", artifact="model", shards=65),
        DeploymentRecord(name="chat", artifact="model", cpus_per_shard=-1),
        DeploymentRecord(name="chat", artifact="model", gpus_per_shard=float("nan")),
        DeploymentRecord(name="chat", artifact="model", traffic_share=1.5),
        DeploymentRecord(name="chat", artifact="model", traffic_share=0.3),
        DeploymentRecord(name="chat.canary", artifact="model"),
        DeploymentRecord(name="chat-2", artifact="model", canary_of="chat", traffic_share=0.1),
        DeploymentRecord(name="chat.canary", artifact="model", canary_of="chat"),
        DeploymentRecord(name="chat.canary", artifact="model", canary_of="chat", traffic_share=0.6),
        DeploymentRecord(
            name="chat.canary.canary", artifact="model", canary_of="chat.canary", traffic_share=0.1
        ),
    ],
)
def test_nonsense_is_refused(records: DeploymentRecords, bad: DeploymentRecord) -> None:
    with pytest.raises(InvalidArgument):
        records.put(bad)
    assert records.list() == []


def test_a_canary_stands_beside_what_it_is_a_canary_of(records: DeploymentRecords) -> None:
    records.put(DeploymentRecord(name="chat", artifact="model"))
    records.put(
        DeploymentRecord(name="chat.canary", artifact="model", canary_of="chat", traffic_share=0.5)
    )
    assert [wanted.name for wanted in records.list()] == ["chat", "chat.canary"]


def test_shards_up_to_a_most(records: DeploymentRecords) -> None:
    put = records.put(
        DeploymentRecord(name="chat", artifact="model", shards=2, max_shards=5)
    ).deployment
    assert put is not None
    assert (put.shards, put.max_shards) == (2, 5)
    same = records.put(
        DeploymentRecord(name="chat", artifact="model", shards=2, max_shards=2)
    ).deployment
    assert same is not None
    assert same.max_shards == 0, "no more than the least is a fixed number"
    for least, most in ((3, 2), (1, 65)):
        with pytest.raises(InvalidArgument, match=f"max_shards is {least} to 64, or 0"):
            records.put(
                DeploymentRecord(name="chat", artifact="model", shards=least, max_shards=most)
            )
