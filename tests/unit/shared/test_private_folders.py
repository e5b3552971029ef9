"""Whoever makes the data directory first, nobody else may look into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plinth.cluster import ray_local, replicas, stack, supervisor
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.cluster.layout import Layout, StackPlan
from plinth.cluster.parts import ChildPart
from plinth.shared.identity import cluster_token
from plinth.shared.private_folders import make_private
from plinth.shared.settings import Settings, load_settings
from plinth.shared.store import ArtifactStore


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def redis(settings: Settings) -> None:
    server = EmbeddedRedis(settings.data_dir)
    try:
        server.start()
    finally:
        server.stop()


def spawned(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: None)
    stack.Stack(settings)._spawn(StackPlan(), owned=False)


def log(settings: Settings) -> None:
    """Of a replica; its output goes back to where it went."""
    kept = os.dup(1), os.dup(2)
    try:
        replicas.write_to_log(settings, "tokenizer")
    finally:
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def child(settings: Settings) -> None:
    part = ChildPart("true", ["true"], {}, Layout.of(settings).log("true"), lambda *_: None)
    part.start()
    part.stop(10)


CREATORS: dict[str, Callable[[Settings], object]] = {
    "settings": lambda settings: settings.ensure_data_dir(),
    "secrets": cluster_token,
    "store": lambda settings: ArtifactStore(settings.store()),
    "supervisor": lambda settings: supervisor.take_lock(Layout.of(settings)).close(),
    "ray's token": lambda settings: ray_local.ensure_token(Layout.of(settings)),
    "redis": redis,
    "a replica's log": log,
    "a part's log": child,
}


@pytest.mark.parametrize("creator", CREATORS)
def test_the_first_creator_closes_the_data_directory(
    creator: str, umask: int, tmp_path: Path
) -> None:
    settings = load_settings(data_dir=tmp_path / "new" / "data")
    CREATORS[creator](settings)
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700


def test_plinth_up_closes_it(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(data_dir=tmp_path / "data")
    spawned(settings, monkeypatch)
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700


def test_what_is_there_keeps_its_mode(umask: int, tmp_path: Path) -> None:
    """As a volume of Kubernetes', which belongs to a group."""
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o2770)
    assert make_private(there / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (there / "a").stat().st_mode & 0o777 == 0o700
    assert there.stat().st_mode & 0o7777 == 0o2770
    (there / "file").touch()
    with pytest.raises(FileExistsError):
        make_private(there / "file")
