"""The kubectl commands that are printed, read by a real kubectl."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from kube_api import KubeApi
from kube_cluster import plinth_k8s
from kube_gateway import ScriptedGateway
from kube_release import CORE, ray_release, static_pods, static_release

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl here")


def read(line: str, folder: Path) -> str:
    """What kubectl says of a command for a server that is not there."""
    assert KUBECTL is not None
    words = [KUBECTL, *shlex.split(line)[1:]]
    at = words.index("--") if "--" in words else len(words)
    words[at:at] = ["--server=http://127.0.0.1:1", "--request-timeout=2"]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        input="{}",
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )
    return done.stderr + done.stdout


def understood(said: str) -> bool:
    """Whether it got as far as calling the server."""
    return "127.0.0.1:1" in said and not re.search("unknown|invalid|required", said)


@pytest.mark.parametrize("mode", ["static", "rayservice"])
def test_a_real_kubectl_takes_them(
    kube: KubeApi, kubeconfig: Path, gateway: ScriptedGateway, tmp_path: Path, mode: str
) -> None:
    if mode == "static":
        static_release(kube)
    else:
        ray_release(kube)
    static_pods(kube)
    kube.put("/api/v1/nodes/node-2", {"kind": "Node", "spec": {}})
    kube.delete(f"{CORE}/pods/plinth-gateway-2")  # so that one pod is drained
    gateway.serve("chat", "chat@7")
    gateway.store("chat", 8)
    runs = (
        ("status",),
        ("scale", "reward", "2"),
        ("rollout", "chat", "chat@8", "--detach"),
        ("drain", "node/node-2"),
        ("logs", "inference"),
        ("doctor",),
        ("doctor", "--before"),
    )
    lines: dict[str, None] = {}
    for arguments in runs:
        told = plinth_k8s(kubeconfig, *arguments, url=gateway.address).stderr
        lines |= dict.fromkeys(re.findall(r"(?<=\$ )kubectl .*", told))
        lines |= dict.fromkeys(re.findall(r"(?<=\| )kubectl create --raw .*", told))
    verbs = {next(w for w in shlex.split(line)[1:] if w in VERBS) for line in lines}
    wanted = {"get", "port-forward", "logs", "cordon", "exec", "create", "describe", "version"}
    assert verbs >= wanted | {"patch" if mode == "rayservice" else "scale"}
    for line in lines:
        said = read(line, tmp_path)
        assert understood(said), f"{line}\n{said}"


VERBS = (
    *("get", "port-forward", "logs", "cordon", "exec", "create", "describe", "version"),
    *("scale", "patch", "api-resources"),
)


def test_what_it_would_not_take_is_found_out(tmp_path: Path) -> None:
    assert not understood(read("kubectl scale statefulset/x --replica=2", tmp_path))
    assert not understood(read("kubectl nonsense", tmp_path))
