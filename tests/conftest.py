"""Fixtures of the ground: a real Redis for the session, a store per test.

Imports happen inside, so that a machine with nothing but torch can run the tests of the library.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    from buckets import ObjectServer
    from plinth.shared.store import ArtifactStore

# Before torch loads OpenMP: a thread that waits for others of its process sleeps. It would spin
# otherwise, on a core that another worker's test, or a process that this test started, needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The files that take longest come first, longest first, so that no worker is left alone with one
# at the end. What is wrong or missing here costs time and nothing else.
LONGEST = (
    "integration/test_canary_step.py",
    "unit/trainer/test_lora_training.py",
    "integration/test_scaling.py",
    "integration/test_pipelines_of_samples.py",
    "integration/test_cluster_stack.py",
    "integration/test_trainer_service.py",
    "integration/test_trainer_kills.py",
    "integration/test_tracing.py",
    "integration/test_gateway_canary.py",
    "unit/coordinator/test_runs_end_to_end.py",
    "unit/trainer/test_corpus.py",
    "unit/shared/test_object_storage.py",
    "unit/inference/test_inference_service.py",
    "unit/engine/test_sampling.py",
    "unit/cluster/test_backup_restore.py",
    "unit/coordinator/test_preference_records.py",
    "unit/reward/test_learned.py",
    "unit/reward/test_code_sandbox.py",
    "unit/tokenizer/test_codec.py",
    "unit/models/test_gguf.py",
    "unit/models/test_real_vocabularies.py",
    "integration/test_coordinator_kills.py",
    "integration/test_backup_stack.py",
    "integration/test_rollouts_by_shards.py",
    "unit/trainer/test_group.py",
    "integration/test_trainer_attempts.py",
    "unit/trainer/test_worker_counts.py",
    "unit/trainer/test_patient_group.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """No example has a deadline: it would be a timed test, and fail on a machine that is busy. The
    profile "ci" has none either, and draws the same examples each time."""
    if config.getoption("--hypothesis-profile", None):
        return
    with suppress(ImportError):
        from hypothesis import settings

        settings.register_profile("plinth", deadline=None)
        settings.load_profile("plinth")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under several workers only: with one, the order is that of the files."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    here = Path(__file__).parent
    rank = {here / file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _ports_of_this_worker() -> Iterator[None]:
    """Nobody listens on a port in the moment after it was chosen: two workers must not choose the
    same one. Each has every fourth (of four)."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    from plinth.cluster import ports

    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    own = ports._candidates()[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ports, "_candidates", lambda: own)
        yield


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL (with password) of an embedded server that lives as long as the test session."""
    from plinth.cluster.embedded_redis import EmbeddedRedis

    server = EmbeddedRedis(tmp_path_factory.mktemp("r"))
    with pytest.MonkeyPatch.context() as patch:
        _note_connections(patch)
        yield server.start()
    server.stop()


# Each connection to Redis that was ever made in a loop and still exists: that loop, and the task.
_connections: WeakKeyDictionary[AbstractConnection, tuple[asyncio.AbstractEventLoop, str]]
_connections = WeakKeyDictionary()


def _note_connections(patch: pytest.MonkeyPatch) -> None:
    from redis.asyncio.connection import AbstractConnection

    make = AbstractConnection.__init__

    def noting(self: AbstractConnection, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        if (task := asyncio.current_task()) is not None:
            name = getattr(task.get_coro(), "__qualname__", task.get_name())
            _connections[self] = (task.get_loop(), name)

    patch.setattr(AbstractConnection, "__init__", noting)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """A connection that outlives its loop fails the test that left it: the garbage collector would
    complain of it in a later one. A client was not closed, or a task used it afterwards."""
    yield
    left = [
        (connection, name)
        for connection, (loop, name) in list(_connections.items())
        if loop.is_closed() and connection.is_connected
    ]
    for connection, _ in left:
        del _connections[connection]
    if left:
        names = ", ".join(name for _, name in left)
        pytest.fail(f"connections to Redis were left open, made in: {names}")


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
