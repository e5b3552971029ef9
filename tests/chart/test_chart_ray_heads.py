"""Two releases of one name, in two namespaces, on one Redis: their Ray heads, as real processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import rendering
from patience import PATIENCE_S
from plinth.cluster.embedded_redis import server_binary
from plinth.cluster.ports import free_port
from real_stack import until
from release import Release

# What a head's GCS knows: {"nodes": ports of raylets that are alive, "owner": who wrote last}.
ASK = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
if sys.argv[2:]:
    client.internal_kv_put(b"owner", sys.argv[2].encode(), True, b"test")
nodes = [n.node_manager_port for n in client.get_all_node_info().values() if n.state == 0]
owner = client.internal_kv_get(b"owner", b"test")
print(json.dumps({"nodes": nodes, "owner": owner and owner.decode()}))
"""
PASSWORD = "p" * 48
OPTIONS = ("port", "node-manager-port", "object-manager-port", "metrics-export-port")


class Head:
    """The chart's head of a release in `namespace`, with ports of its own on loopback."""

    def __init__(self, release: Release, namespace: str, redis: int, root: Path) -> None:
        (pod,) = [one for one in release.pods if one.component == "head"]
        known = {"POD_IP": "127.0.0.1", "REDIS_AUTH": PASSWORD}
        chart = {one["name"]: one["value"] for one in pod.main["env"] if "value" in one}
        self.namespace = namespace
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "RAY_TMPDIR": str(root / namespace),
            "RAY_AUTH_TOKEN": "x" * 48,
            "RAY_REDIS_ADDRESS": f"redis://127.0.0.1:{redis}",
            **{name: chart[name] for name in ("RAY_external_storage_namespace", "RAY_AUTH_MODE")},
        }
        self._root = root / namespace
        self._root.mkdir()
        self.ports = {name: free_port() for name in OPTIONS}
        self._command = [self._word(word, known) for word in pod.main["command"]]
        self._process: subprocess.Popen[bytes] | None = None

    def _word(self, word: str, known: dict[str, str]) -> str:
        """A word of the command as a container would have it, but for the ports."""
        name = word.removeprefix("--").partition("=")[0]
        if name in self.ports:
            return f"--{name}={self.ports[name]}"
        return re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], word)

    def start(self) -> None:
        """Until its GCS and its raylet answer."""
        ray = [str(Path(sys.executable).with_name("ray")), *self._command[1:]]
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*ray, "--include-dashboard=false", "--disable-usage-stats"],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._up, f"the head in {self.namespace} is up", PATIENCE_S)

    def _up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._root / "log").read_text()
        return self.ports["node-manager-port"] in (self.asked() or {"nodes": []})["nodes"]

    def asked(self, *owner: str) -> dict[str, Any] | None:
        """What its GCS says; `owner`: is written there first. None: it does not answer."""
        done = subprocess.run(
            [sys.executable, "-c", ASK, f"127.0.0.1:{self.ports['port']}", *owner],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    def kill(self) -> None:
        """All of its processes, as a lost machine would."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            parent = psutil.Process(self._process.pid)
            for one in [*parent.children(recursive=True), parent]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        self._process.wait()
        self._process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[int]:
    """Port of one server for both."""
    port = free_port()
    command = [str(server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with (tmp_path / "redis.log").open("ab") as log:
        server = subprocess.Popen(
            [*command, "--dir", str(tmp_path), "--requirepass", PASSWORD], stdout=log
        )
    try:
        yield port
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_heads_of_one_name_in_two_namespaces_keep_apart(
    any_helm: rendering.Helm, redis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the extra 'cluster'")
    with ExitStack() as ends, tempfile.TemporaryDirectory() as folder:
        heads = []
        for namespace in ("team-a", "team-b"):
            monkeypatch.setattr(rendering, "NAMESPACE", namespace)
            made = Release(rendering.documents(any_helm.render({"ray": {"mode": "static"}})))
            heads.append(Head(made, namespace, redis, Path(folder)))
            ends.callback(heads[-1].kill)
            heads[-1].start()
        one, other = heads
        for head in heads:
            head.asked(head.namespace)
        for head in heads:
            own = {"nodes": [head.ports["node-manager-port"]], "owner": head.namespace}
            assert head.asked() == own
        # What is lost comes back with its own state, and takes nothing from its neighbour.
        one.kill()
        one.start()
        found = one.asked()
        assert found is not None
        assert found["owner"] == "team-a"
        assert other.ports["node-manager-port"] not in found["nodes"]
        assert other.asked() == {
            "nodes": [other.ports["node-manager-port"]],
            "owner": "team-b",
        }
