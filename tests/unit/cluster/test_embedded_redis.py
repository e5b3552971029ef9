"""The embedded server: what it opens, what it leaves, and what survives its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.shared.connection import connect
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.queue import Queue
from plinth.shared.tasks import cancel_and_wait


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    embedded = EmbeddedRedis(tmp_path)
    yield embedded
    embedded.stop()


def kill(server: EmbeddedRedis) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


def test_opens_one_private_socket(server: EmbeddedRedis, tmp_path: Path) -> None:
    url = server.start()
    assert server.alive() and server.start() == url
    assert server.pid is not None and int(server.pidfile.read_text()) == server.pid
    process = psutil.Process(server.pid)
    password = (tmp_path / "secrets" / "redis-password").read_text().strip()
    assert len(password) == 64 and password in url
    assert password not in " ".join(process.cmdline()) + str(process.environ())
    assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    for path in (server.config, tmp_path / "secrets" / "redis-password"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "redis" / "redis.sock").stat().st_mode & 0o777 == 0o700
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        wanted = {"appendfsync": "always", "appendonly": "yes", "maxmemory-policy": "noeviction"}
        for key, value in wanted.items():
            assert client.config_get(key) == {key: value}
        loaded = [module[b"path"] for module in client.module_list()]
        assert all(path == b"" for path in loaded), "only what the server has built in"
    with (
        contextlib.closing(redis.Redis.from_url(url.replace(password, "wrong"))) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.ping()
    server.stop()
    assert not server.alive() and not psutil.pid_exists(process.pid)
    left = {path.name for path in (tmp_path / "redis").iterdir()}
    assert left == {"appendonlydir", "redis.log", "lock"}


def test_long_path_takes_a_loopback_port_and_keeps_it(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / ("long" * 25) / 'with "quotes" and blanks')
    try:
        url = server.start()
        assert url.startswith("redis://") and "@127.0.0.1:" in url
        assert server.pid is not None
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(server.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == ["127.0.0.1"]
        kill(server)
        assert server.start() == url
    finally:
        server.stop()


def test_second_owner_is_refused_and_a_killed_ones_server_replaced(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    script = (
        "import sys, time, pathlib; from plinth.cluster.embedded_redis import EmbeddedRedis\n"
        "s = EmbeddedRedis(pathlib.Path(sys.argv[1])); s.start(); print(s.pid, flush=True)\n"
        "time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    left = psutil.Process(int(owner.stdout.readline()))
    with pytest.raises(FailedPrecondition, match="another Plinth process"):
        server.start()
    owner.kill()
    owner.communicate()
    assert left.is_running(), "the server outlives its supervisor"
    server.start()
    assert not left.is_running() and server.alive() and server.pid != left.pid


def test_foreign_pid_in_the_pidfile_is_left_alone(server: EmbeddedRedis, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        server.pidfile.parent.mkdir()
        server.pidfile.write_text(str(stranger.pid))
        server.start()
        assert stranger.poll() is None
        stranger.kill()


def test_failure_to_start_shows_the_log(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, maxmemory="nonsense")
    with pytest.raises(Unavailable, match="ended with code"):
        server.start()
    assert not server.alive()
    with pytest.raises(FailedPrecondition, match="plinth up"):
        _ = EmbeddedRedis(tmp_path / "never").url


async def test_truncated_aof_loads(server: EmbeddedRedis, tmp_path: Path) -> None:
    client = connect(server.start())
    queue = Queue(client, "jobs")
    for i in range(5):
        await queue.add(f"j{i}", b"x")
    kill(server)
    (aof,) = (tmp_path / "redis" / "appendonlydir").glob("*.incr.aof")
    with aof.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nhal")  # what a crash in mid-write leaves
    await asyncio.to_thread(server.start)
    assert (await queue.inspect()).length == 5
    await client.aclose()


async def test_killed_in_mid_run_loses_nothing_accepted(server: EmbeddedRedis) -> None:
    """Producers and consumers at work, kill -9 three times: all accepted items end, once each."""
    url = await asyncio.to_thread(server.start)
    accepted: set[str] = set()
    completed: dict[str, int] = {}
    producing = True

    async def produce(part: int) -> None:
        client = connect(url)
        queue = Queue(client, "jobs")
        for i in range(150):
            while True:
                try:
                    await queue.add(f"p{part}-{i}", str(i).encode())
                    break
                except Unavailable:
                    await asyncio.sleep(0.02)  # the same id again: accepted once
            accepted.add(f"p{part}-{i}")
        await client.aclose()

    async def consume(name: str) -> None:
        async with contextlib.aclosing(connect(url)) as client:
            await consume_by(client, name)

    async def consume_by(client: Redis, name: str) -> None:
        queue = Queue(client, "jobs", lease_s=1, max_attempts=50)
        while producing or len(completed) < len(accepted):
            try:
                lease = await queue.claim(name, wait_s=0.1)
                if lease is None:
                    continue
                await queue.heartbeat(lease)
                await queue.complete(lease, name.encode())
            except Unavailable:
                await asyncio.sleep(0.02)
                continue
            completed[lease.id] = completed.get(lease.id, 0) + 1
            assert await read(queue, lease.id) == name.encode()

    async def read(queue: Queue, item: str) -> bytes | None:
        while True:
            try:
                return await queue.result(item)
            except Unavailable:
                await asyncio.sleep(0.02)

    async def murder() -> None:
        for share in (0.2, 0.5, 0.8):
            while len(accepted) < 450 * share:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            kill(server)
            assert await asyncio.to_thread(server.start) == url

    consumers = [asyncio.create_task(consume(f"c{i}")) for i in range(3)]
    await asyncio.gather(murder(), *(produce(part) for part in range(3)))
    producing = False
    client = connect(url)
    queue = Queue(client, "jobs")
    results = 0
    async with asyncio.timeout(PATIENCE_S):
        # A completion whose answer was lost is not counted by its consumer, but it is there.
        while results < len(accepted):
            results = sum([await queue.result(item) is not None for item in accepted])
            await asyncio.sleep(0.1)
    await cancel_and_wait(*consumers)
    outcomes = await asyncio.gather(*consumers, return_exceptions=True)
    assert all(o is None or isinstance(o, asyncio.CancelledError) for o in outcomes), outcomes
    assert len(accepted) == 450 and set(completed.values()) <= {1}
    info = await queue.inspect()
    assert (info.length, info.pending, info.delayed, info.dead) == (0, 0, 0, 0)
    await client.aclose()
