"""Shards wanted and ready, as the reconciler tells Prometheus."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from plinth.cluster import reconciler
from plinth.cluster.layout import StageSpec
from plinth.cluster.reconciler import PREFIX, ReconcilerFront
from plinth.cluster.serving import Served
from plinth.internal.v1.deployments_pb2 import DeploymentRecord
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore


class Context:
    """What the reconciler's constructor takes of a stage's context."""

    def __init__(self, folder: Path) -> None:
        self.settings = load_settings(data_dir=folder)
        self.store = ArtifactStore(self.settings.store())


def sample(name: str, model: str) -> float | None:
    return REGISTRY.get_sample_value(f"plinth_model_shards_{name}", {"model": model})


def test_a_model_that_is_wanted_no_more_is_not_talked_of(tmp_path: Path) -> None:
    context: Any = Context(tmp_path)
    front = ReconcilerFront(context, StageSpec(name="inference", factory="x:y"))
    front._seen = [
        {"name": "chat", "shards": 2, "ready": 1, "state": "restarting"},
        {"name": "code", "shards": 1, "ready": 1, "state": "ready"},
    ]
    front._tell()
    assert (sample("wanted", "chat"), sample("ready", "chat")) == (2, 1)
    passed = REGISTRY.get_sample_value("plinth_reconciler_passed_timestamp_seconds")
    assert abs((passed or 0) - time.time()) < 60
    front._seen = front._seen[:1]
    front._tell()
    assert sample("wanted", "code") is None
    assert sample("ready", "chat") == 1


def test_shards_are_wanted_as_serve_wants_them_now(tmp_path: Path) -> None:
    """Between their bounds, so that nobody is alarmed by a shard that load does not ask for."""
    chat = DeploymentRecord(name="chat", artifact="chat@1", shards=1, max_shards=4)
    told = ReconcilerFront._told(chat, Served("ready", replicas=2, wanted=3))
    assert (told["shards"], told["ready"]) == (3, 2)
    assert (told["min_shards"], told["max_shards"]) == (1, 4)
    # Serve has not said yet; a fixed number.
    assert ReconcilerFront._told(chat, Served("starting"))["shards"] == 1
    fixed = ReconcilerFront._told(
        DeploymentRecord(name="chat", shards=2), Served("ready", 2, wanted=2)
    )
    assert (fixed["shards"], fixed["min_shards"], fixed["max_shards"]) == (2, 2, 2)
    context: Any = Context(tmp_path)
    front = ReconcilerFront(context, StageSpec(name="inference", factory="x:y"))
    assert front._spec(chat).numbers() == (1, 4, 30.0, 300.0)


def test_shards_of_a_damaged_record_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the record keeps no other model from being started."""
    context: Any = Context(tmp_path)
    (tmp_path / "file").write_text("1")
    context.store.publish("m", "model", tmp_path / "file")
    records = DeploymentRecords(context.store)
    for name in ("bad", "good", "gone"):
        records.put(DeploymentRecord(name=name, artifact="m"))
    records.delete("gone")
    bad = context.store.storage.local("deployments/bad/00000001.json")
    bad.write_bytes(b"{")
    front = ReconcilerFront(context, StageSpec(name="inference", factory="x:y"))
    there = {PREFIX + name: Served("ready", 1, 1) for name in ("bad", "gone")}
    monkeypatch.setattr(reconciler, "states", lambda: there)
    applied, removed = list[str](), list[str]()
    monkeypatch.setattr(
        front,
        "_applier",
        SimpleNamespace(
            apply=lambda specs, now: applied.extend(spec.name for spec in specs),
            remove=removed.extend,
        ),
    )
    assert [one["name"] for one in front._pass()] == ["good"]
    assert (len(applied), removed) == (1, [PREFIX + "gone"])
