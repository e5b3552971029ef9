"""The chart's Redis, as its container would run it: the rendered script and file, a real server."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import redis

import rendering
from patience import PATIENCE_S
from plinth.cluster.embedded_redis import server_binary
from plinth.cluster.ports import free_port
from plinth.shared.connection import connect
from plinth.shared.errors import FailedPrecondition
from plinth.shared.schema import claim_redis
from release import Release
from running import settings_of

PASSWORD = "Abc123" * 8


@pytest.fixture
def server(any_helm: rendering.Helm, tmp_path: Path):
    """A client of the server; paths and port are the only things that differ from a pod."""
    values = {"redis": {"maxmemory": "64mb"}}
    made = Release(rendering.documents(any_helm.render(values)))
    (pod,) = [pod for pod in made.pods if pod.component == "redis"]
    conf = made.named("ConfigMap", "demo-plinth-redis")["data"]["redis.conf"]
    port = free_port()
    folders = {"/etc/redis": tmp_path / "etc", "/run/redis": tmp_path / "run"}
    folders["/data"] = tmp_path / "data"
    for folder in folders.values():
        folder.mkdir()
    (script,) = pod.main["args"]
    binary = tmp_path / "bin"
    binary.mkdir()
    (binary / "redis-server").symlink_to(server_binary())
    for there, here in folders.items():
        script, conf = script.replace(there, str(here)), conf.replace(there, str(here))
    (tmp_path / "etc" / "redis.conf").write_text(conf.replace("port 6379", f"port {port}"))
    environment = {
        "PATH": f"{binary}:{os.environ['PATH']}",
        "REDISCLI_AUTH": PASSWORD,
    }
    process = subprocess.Popen(
        [*pod.main["command"], script], env=environment, stdout=subprocess.DEVNULL
    )
    client = redis.Redis(port=port, password=PASSWORD)
    try:
        yield process, client, port, tmp_path
    finally:
        client.close()
        process.terminate()
        process.wait(10)


def up(client: redis.Redis) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.ping()
            return
        except redis.exceptions.ConnectionError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.02)


def test_it_keeps_every_write_and_asks_for_the_password(server) -> None:
    process, client, port, folder = server
    up(client)
    config = client.config_get("*")
    assert (config["appendonly"], config["maxmemory-policy"]) == ("yes", "noeviction")
    assert config["maxmemory"] == str(64 << 20)
    assert int(config["databases"]) >= 2, "one is Ray's"
    with redis.Redis(port=port) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()
    assert (folder / "run" / "auth.conf").stat().st_mode & 0o077 == 0
    assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
    client.set("kept", "yes")
    assert (folder / "data" / "appendonlydir").is_dir()


async def test_a_release_of_the_same_name_in_another_namespace_is_refused_its_database(
    any_helm: rendering.Helm, server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each one's pods are called, as their settings have it, on databases of one server."""
    _, client, port, _ = server
    up(client)
    names = []
    for namespace in ("team-a", "team-b"):
        monkeypatch.setattr(rendering, "NAMESPACE", namespace)
        made = Release(rendering.documents(any_helm.render({"ray": {"mode": "static"}})))
        stages = ("head", "trainer", "gateway")
        (name,) = {settings_of(made, component)["release"] for component in stages}
        names.append(name)
    one, other = names
    first, second = (connect(f"redis://:{PASSWORD}@127.0.0.1:{port}/{n}") for n in (1, 2))
    try:
        for _ in range(2):
            await claim_redis(first, one)
        refusal = f"the release {one}'s, and this process is {other}"
        with pytest.raises(FailedPrecondition, match=refusal) as caught:
            await claim_redis(first, other)
        assert "redis-cli -n 1 DEL" in caught.value.message
        await claim_redis(second, other)
    finally:
        await first.aclose()
        await second.aclose()
