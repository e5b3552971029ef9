"""What comes to point at a version while that is being deleted: one of both sees the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plinth.internal.v1 import deployments_pb2 as pb
from plinth.shared.aliases import Aliases
from plinth.shared.artifact_versions import ArtifactVersions
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.record_log import RecordLog
from plinth.shared.records import DeploymentRecords
from plinth.shared.store import ArtifactRecord, ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore((tmp_path / "store").as_uri())
    for text in "123":
        (tmp_path / "file").write_text(text)
        store.publish("chat", "model", tmp_path / "file")
    return store


def just_before(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, act: Callable[[], None]
) -> None:
    """Lets `act` happen once, just before somebody's next call of the method."""
    real: Any = getattr(kind, method)

    def late(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(kind, method, real)
        act()
        return real(*args, **more)

    monkeypatch.setattr(kind, method, late)


def unused(_: ArtifactRecord) -> list[str]:
    return []


@pytest.mark.parametrize("before", [None, 1])
def test_an_alias_stays_where_it_was(
    store: ArtifactStore, before: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before:
        store.set_alias("chat", "prod", before)
    other = ArtifactStore(store.url)
    just_before(monkeypatch, Aliases, "move", lambda: other.delete("chat@2", unused))
    with pytest.raises(NotFound, match="chat@2 was deleted"):
        store.set_alias("chat", "prod", 2)
    assert store.aliases("chat") == ({"prod": before} if before else {})
    store.set_alias("chat", "prod", 3)
    assert store.aliases("chat") == {"prod": 3}


def test_an_alias_whose_versions_have_both_gone_names_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.set_alias("chat", "prod", 1)
    other = ArtifactStore(store.url)

    def both_go() -> None:
        other.delete("chat@2", unused)
        just_before(monkeypatch, Aliases, "move", lambda: other.delete("chat@1", unused))

    just_before(monkeypatch, Aliases, "move", both_go)
    with pytest.raises(NotFound):
        store.set_alias("chat", "prod", 2)
    assert store.aliases("chat") in ({}, {"prod": 1})
    for version in store.aliases("chat").values():
        store.get(f"chat@{version}")


def test_who_deletes_sees_an_alias_that_was_faster(store: ArtifactStore) -> None:
    other = ArtifactStore(store.url)
    looks: list[str] = []

    def in_use(record: ArtifactRecord) -> list[str]:
        looks.append(record.ref)
        if len(looks) == 1:
            other.set_alias("chat", "prod", 2)
        return []

    with pytest.raises(FailedPrecondition, match="alias chat:prod"):
        store.delete("chat@2", in_use)
    assert store.get("chat:prod").version == 2


@pytest.mark.parametrize("before", [None, "chat@1"])
def test_a_deployment_stays_what_it_was(
    store: ArtifactStore, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = DeploymentRecords(store)
    if before:
        records.put(pb.DeploymentRecord(name="chat", artifact=before, shards=2))
    other = ArtifactStore(store.url)
    just_before(monkeypatch, RecordLog, "append", lambda: other.delete("chat@2", unused))
    with pytest.raises(NotFound, match="no version 2"):
        records.put(pb.DeploymentRecord(name="chat", artifact="chat@2"))
    assert [(one.artifact, one.shards) for one in records.list()] == (
        [(before, 2)] if before else []
    )


def test_a_draft_model_has_to_be_there(store: ArtifactStore) -> None:
    wanted = pb.DeploymentRecord(name="chat", artifact="chat@1", speculation="draft:small")
    with pytest.raises(NotFound, match="no artifact is called 'small'"):
        DeploymentRecords(store).put(wanted)
    store.publish("small", "tokenizer", store.fetch("chat@1"))
    with pytest.raises(InvalidArgument, match="a draft is a model; small@1 is a tokenizer"):
        DeploymentRecords(store).put(wanted)


def test_content_that_goes_is_no_version_of_another_name(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = store.get("chat@2"), ArtifactStore(store.url)
    just_before(monkeypatch, ArtifactVersions, "record", lambda: other.delete("chat@2", unused))
    with pytest.raises(NotFound, match="chat@2 was deleted"):
        store.link("copy", source)
    assert [one.ref for one in store.list()] == ["chat@3", "chat@1"]
    assert store.link("copy", store.get("chat@3")).version == 2


def test_content_of_another_name_outlives_its_source(store: ArtifactStore) -> None:
    made = store.link("copy", store.get("chat@2"))
    store.delete("chat@2", unused)
    assert store.link("copy", store.get("chat@3")).version == 2
    assert (store.fetch(made) / "file").read_text() == "2"
