"""The artifact store: what is promised of publication, versions, aliases and damage."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from plinth.shared import local_storage
from plinth.shared.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from plinth.shared.store import ArtifactStore
from store_rivals import race


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder(tmp_path / "source", config="{}", sub__weights="w" * 1000)


def staged(store: ArtifactStore) -> list[Path]:
    local = store.storage.local("artifacts")
    assert local is not None
    return list((local.parent / ".staging").iterdir())


def content(store: ArtifactStore, name: str) -> list[str]:
    return store.storage.names(f"artifacts/{name}/content")


def test_publish_and_read_back(store: ArtifactStore, source: Path) -> None:
    record = store.publish(
        "chat",
        "model",
        source,
        parents=["tok@1"],
        config={"layers": 2},
        metrics={"bpb": 1.5},
        data_digests={"corpus": "sha256:1"},
        input_digest="sha256:in",
        license="apache-2.0",
        extra={"x": [1]},
    )
    assert (record.ref, record.kind, record.parents) == ("chat@1", "model", ("tok@1",))
    path = store.fetch("chat")
    assert (path / "sub" / "weights").read_text() == "w" * 1000
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest == record.manifest
    assert manifest["license"] == "apache-2.0" and manifest["metrics"] == {"bpb": 1.5}
    # The digest by the words of its definition, independent of the code.
    rows = [
        [name, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}"]
        for name, data in (("config", b"{}"), ("sub/weights", b"w" * 1000))
    ]
    text = json.dumps(rows, separators=(",", ":")).encode()
    assert record.digest == f"sha256:{hashlib.sha256(text).hexdigest()}"
    assert not os.access(path / "config", os.W_OK) or os.geteuid() == 0
    assert (path / "config").stat().st_mode & 0o222 == 0
    assert staged(store) == []


def test_versions_and_same_content(store: ArtifactStore, source: Path, tmp_path: Path) -> None:
    first = store.publish("chat", "model", source, input_digest="a")
    assert store.publish("chat", "model", source, input_digest="a") == first
    second = store.publish("chat", "model", source, input_digest="b")
    assert (second.version, second.digest) == (2, first.digest)
    third = store.publish("chat", "model", folder(tmp_path / "other", config="[]"))
    assert third.version == 3 and len(content(store, "chat")) == 3
    store.publish("words", "tokenizer", source)
    assert [record.ref for record in store.list()] == ["chat@3", "chat@2", "chat@1", "words@1"]
    assert [record.ref for record in store.list("tokenizer")] == ["words@1"]
    assert store.get("chat").version == 3 and store.get("chat@1") == first
    assert store.find_by_input("chat", "a") == first
    assert store.find_by_input("chat", "z") is None and store.find_by_input("none", "a") is None
    # Another process sees the same.
    assert ArtifactStore(store.url).list() == store.list()
    # A fetched folder can be published again: its manifest is not content.
    again = store.publish("copy", "model", store.fetch("chat@1"))
    assert again.digest == first.digest


@pytest.mark.parametrize("ref", ["gone", "chat@2", "chat:prod"])
def test_not_found_says_what_there_is(store: ArtifactStore, source: Path, ref: str) -> None:
    store.publish("chat", "model", source)
    with pytest.raises(NotFound, match="chat"):
        store.get(ref)


BAD_NAMES = ["", "..", ".x", "a/b", "../x", "A", "ä", "a" * 65, "a b", "a\n", "a@1", "a:b", "-a"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(store: ArtifactStore, source: Path, name: str) -> None:
    store.publish("chat", "model", source)
    for call in (
        lambda: store.publish(name, "model", source),
        lambda: store.publish("chat", name, source),
        lambda: store.set_alias("chat", name, 1),
        lambda: store.aliases(name),
        lambda: store.find_by_input(name, "x"),
    ):
        with pytest.raises(InvalidArgument):
            call()
    if name not in ("a@1", "a:b"):
        with pytest.raises(InvalidArgument):
            store.get(name)
    for ref in (
        "chat@0",
        "chat@01",
        "chat@-1",
        "chat@1:prod",
        "chat@",
        "chat:",
        "chat@99999999999",
    ):
        with pytest.raises(InvalidArgument):
            store.get(ref)


def test_bad_sources(store: ArtifactStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    link = folder(tmp_path / "link", a="1")
    (link / "out").symlink_to(secret)
    folder_link = folder(tmp_path / "folderlink", a="1")
    (folder_link / "out").symlink_to(tmp_path)
    pipe = folder(tmp_path / "pipe", a="1")
    os.mkfifo(pipe / "fifo")
    odd = folder(tmp_path / "odd", a="1")
    (odd / "a\nb").write_text("1")
    named = folder(tmp_path / "named")
    named.mkdir()
    (named / "manifest.json").write_text('{"mine": 1}')
    empty = tmp_path / "empty"
    (empty / "sub").mkdir(parents=True)
    for bad in (link, folder_link, pipe, odd, named, empty):
        with pytest.raises(InvalidArgument):
            store.publish("chat", "model", bad)
    with pytest.raises(NotFound):
        store.publish("chat", "model", tmp_path / "nothing")
    with pytest.raises(InvalidArgument, match="NaN"):
        store.publish("chat", "model", secret, metrics={"loss": float("nan")})
    assert store.list() == [] and content(store, "chat") == [] and staged(store) == []


def test_aliases(store: ArtifactStore, source: Path) -> None:
    for digest in "abc":
        store.publish("chat", "model", source, input_digest=digest)
    assert store.aliases("chat") == {}
    store.set_alias("chat", "prod", 1, expected=None)
    with pytest.raises(Aborted):
        store.set_alias("chat", "prod", 2, expected=None)
    store.set_alias("chat", "prod", 2, expected=1)
    with pytest.raises(Aborted, match="version 2"):
        store.set_alias("chat", "prod", 3, expected=1)
    store.set_alias("chat", "next", 3)
    with pytest.raises(NotFound):
        store.set_alias("chat", "prod", 4)
    assert store.aliases("chat") == {"next": 3, "prod": 2}
    assert store.get("chat:prod").version == 2
    assert ArtifactStore(store.url).get("chat:next").version == 3


def test_rivals(tmp_path: Path) -> None:
    race((tmp_path / "s").as_uri(), tmp_path)


class FullDisk:
    """Lets `calls` writes through, then the disk is full."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def sync(self, file: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        file.flush()


def test_full_disk_at_any_write_leaves_nothing(
    store: ArtifactStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("chat", "model", source)
    failures = 0
    for calls in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(local_storage, "_sync", FullDisk(calls).sync)
            try:
                store.publish("chat", "model", source, input_digest=str(calls))
            except ResourceExhausted as error:
                failures += 1
                assert error.reason == "DISK_FULL"
            else:
                break
        assert [record.ref for record in store.list()] == ["chat@1"]
        assert len(content(store, "chat")) == 1 and staged(store) == []
    assert failures == 5  # lock, two files, manifest, version record
    assert store.get("chat").version == 2


def _publish_and_die(url: str, source: str, at: str) -> None:
    """In a child: publishes and is killed at one point."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    store = ArtifactStore(url)
    if at == "staging":
        local_storage._LocalTree.commit = die  # type: ignore[method-assign]
    elif at == "committed":
        store._versions.record = die  # type: ignore[method-assign,assignment]
    elif at == "recorded":
        store._versions.load = die  # type: ignore[method-assign,assignment]
    store.publish("chat", "model", Path(source))


@pytest.mark.parametrize("at", ["staging", "committed", "recorded"])
def test_killed_publisher(store: ArtifactStore, source: Path, at: str) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=_publish_and_die, args=(store.url, str(source), at)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    child.close()
    found = store.list()
    assert [record.version for record in found] == ([1] if at == "recorded" else [])
    assert staged(store), "the dead publisher left something to sweep"
    alive = store.publish("chat", "model", folder(source.parent / "next", a="2"))
    assert alive.version == len(found) + 1
    assert staged(store) == [] and len(content(store, "chat")) == alive.version
    for record in store.list():
        store.verify(record)


def test_a_slow_publisher_is_not_swept(store: ArtifactStore, source: Path) -> None:
    with store.storage.new_tree("artifacts/chat/content/0000000000000000-0000000000000000") as tree:
        tree.write("a", [b"1"])
        ArtifactStore(store.url).publish("chat", "model", source)
        tree.commit()
        ArtifactStore(store.url).publish("chat", "model", source, input_digest="2")
        assert len(content(store, "chat")) == 3


def test_damage_is_found(store: ArtifactStore, source: Path) -> None:
    record = store.publish("chat", "model", source)
    store.verify("chat")
    weights = store.fetch("chat") / "sub" / "weights"
    weights.chmod(0o644)
    weights.write_text("w" * 999 + "x")
    with pytest.raises(DataLoss, match="sub/weights"):
        store.verify("chat")
    weights.unlink()
    with pytest.raises(DataLoss, match="missing"):
        store.verify(record)
    weights.symlink_to("/etc/passwd")
    with pytest.raises(DataLoss):
        store.verify(record)
    versions = store.storage.local("artifacts/chat/versions")
    assert versions is not None
    for text, match in (
        ("", "damaged"),
        ('{"plinth_schema": 99}', "upgrade"),
        ('{"plinth_schema": 1, "content": "../../x"}', "points to"),
    ):
        (versions / "00000002.json").write_text(text)
        with pytest.raises(DataLoss, match=match):
            ArtifactStore(store.url).get("chat@2")


@pytest.mark.parametrize(
    "url", ["http://x/y", "ftp://x/y", "zip://x", "data:x", "relative/path", ""]
)
def test_refused_backends(url: str) -> None:
    with pytest.raises((FailedPrecondition, InvalidArgument), match=r"exclusively|protocol"):
        ArtifactStore(url)


def test_backend_that_overwrites_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(self: Any, path: str, data: bytes) -> bool:
        return True

    monkeypatch.setattr(local_storage.LocalStorage, "create", overwrite)
    with pytest.raises(FailedPrecondition, match="twice"):
        ArtifactStore(tmp_path.as_uri())
