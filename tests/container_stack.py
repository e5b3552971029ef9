"""A Docker engine and what compose.yaml runs on it, for the slow tests in tests/images."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import time
import tomllib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from checkpoints import byte_tokenizer, random_llama

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def docker(*arguments: str, timeout_s: float = 120.0, **how: Any) -> str:
    """Standard output of the client (DOCKER: another one). AssertionError with what it said."""
    command = [os.environ.get("DOCKER", "docker"), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, **how)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr.decode(errors='replace')}"
    return done.stdout.decode(errors="replace").strip()


def image(target: str) -> str:
    return f"plinth/{target}:{VERSION}"


def skip_unless_built(*targets: str) -> None:
    """Skips where no engine answers, or an image was not built."""
    client = os.environ.get("DOCKER", "docker")
    if shutil.which(client) is None:
        pytest.skip(f"there is no {client} here")
    for what in (["version"], *(["image", "inspect", image(target)] for target in targets)):
        if subprocess.run([client, *what], capture_output=True, check=False).returncode:
            why = "no Docker engine answers" if what == ["version"] else f"no image {what[-1]}"
            pytest.skip(f"{why}; start an engine, then `make images`")


def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """What `condition` gives, once it gives something."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.5)
    return found


def slow_model(folder: Path, seed: int = 0) -> None:
    """A random Llama that needs some 20 ms a token on a small machine, so that an answer of a few
    hundred still runs while a container is killed or cut off. Another seed: other weights."""
    random_llama(folder, seed=seed, layers=24, hidden=512, heads=8, intermediate=1536, context=1024)
    byte_tokenizer(folder)


def resumed(gateway: str) -> float:
    """Streams that went on at another shard, as the gateway at this address counts them."""
    with urllib.request.urlopen(f"http://{gateway}:8080/metrics", timeout=10) as answer:
        text = answer.read().decode()
    lines = re.findall(r"^plinth_streams_resumed_total\{.*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, lines))


@dataclass
class Compose:
    """One project of docker/compose.yaml, with secrets and volumes of its own."""

    project: str
    secrets: Path
    _command: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        client = os.environ.get("DOCKER", "docker")
        plugin = subprocess.run([client, "compose", "version"], capture_output=True, check=False)
        self._command = [client, "compose"] if plugin.returncode == 0 else ["docker-compose"]
        if plugin.returncode and shutil.which("docker-compose") is None:
            pytest.skip("neither `docker compose` nor docker-compose is installed")
        subprocess.run(["sh", ROOT / "docker" / "secrets.sh", self.secrets], check=True)

    def __call__(self, *arguments: str, timeout_s: float = PATIENCE_S) -> str:
        environment = {
            **os.environ,
            "PLINTH_SECRETS": str(self.secrets),
            "PLINTH_VERSION": VERSION,
            "PLINTH_REST_PORT": "0",
            "PLINTH_GRPC_PORT": "0",
            "REDIS_IMAGE": image("redis"),
        }
        file = str(ROOT / "docker" / "compose.yaml")
        command = [*self._command, "-p", self.project, "-f", file, *arguments]
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    def containers(self, service: str) -> list[str]:
        """Ids of the service's containers."""
        return self("ps", "-q", service).split()

    def address(self, container: str, network: str = "inside") -> str:
        """On the network that leads nowhere, which this machine can reach all the same."""
        name = f"{self.project}_{network}"
        shown = f'{{{{(index .NetworkSettings.Networks "{name}").IPAddress}}}}'
        return docker("inspect", "--format", shown, container)

    def give(self, service: str, folder: Path, path: str) -> None:
        """Copies a folder into a container, to a path below a volume; roots are read-only."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(folder, ".")
        inside = f"mkdir -p {path} && tar -xC {path} --no-same-owner"
        one = self.containers(service)[0]
        docker("exec", "-i", one, "sh", "-ec", inside, input=packed.getvalue())

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def log(self, service: str) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self("logs", "--tail", "60", service))
