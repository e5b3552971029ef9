"""Fixtures of the ground: a real Redis for the session, a store per test.

Imports happen inside, so that a machine with nothing but torch can run the tests of the library.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from buckets import ObjectServer
    from plinth.shared.store import ArtifactStore

# Before torch loads OpenMP: a thread that waits for others of its process sleeps. It would spin
# otherwise, on a core that another worker's test, or a process that this test started, needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL (with password) of an embedded server that lives as long as the test session."""
    from plinth.cluster.embedded_redis import EmbeddedRedis

    server = EmbeddedRedis(tmp_path_factory.mktemp("r"))
    yield server.start()
    server.stop()


@pytest.fixture
async def redis_client(redis_server: str) -> AsyncIterator[Redis]:
    """An asyncio client on an empty database."""
    from plinth.shared.connection import connect

    client = connect(redis_server)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """An artifact store on the test's own directory."""
    from plinth.shared.store import ArtifactStore

    return ArtifactStore((tmp_path / "store").as_uri())


@pytest.fixture(scope="session")
def _object_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ObjectServer]]:
    """Started when a test first asks for one; they live as long as the test session."""
    servers: dict[str, ObjectServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(params=["s3", "gs"])
def object_server(
    request: pytest.FixtureRequest,
    _object_servers: dict[str, ObjectServer],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ObjectServer]:
    """An object store without faults, whose credentials this process has."""
    from buckets import ObjectServer

    kind = request.param
    if kind not in _object_servers:
        _object_servers[kind] = ObjectServer(kind, tmp_path_factory.mktemp(kind))
    server = _object_servers[kind]
    server.enter(monkeypatch)
    yield server
    server.fault("none")


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    """The URL of an empty place in a bucket."""
    return f"{object_server.kind}://models/{secrets.token_hex(6)}"


@pytest.fixture(autouse=True)
def _torch_left_as_found() -> Iterator[None]:
    """A test that turns gradients off for the process would fail its neighbours, in some orders."""
    yield
    if torch := sys.modules.get("torch"):
        assert torch.is_grad_enabled(), "this test left gradients off: use `with torch.no_grad()`"
