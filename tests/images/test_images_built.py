"""The images that `make images` made: size, user, contents. Slow only in that it needs them."""

from __future__ import annotations

import json
import os

import pytest

from container_stack import ROOT, docker, image, skip_unless_built

pytestmark = pytest.mark.slow
GATEWAY_LIMIT_BYTES = 250_000_000
FLAVOURS = ("gateway", "cpu")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    skip_unless_built(*FLAVOURS)


def run(target: str, *command: str) -> str:
    """One command as the chart runs it: no rights, nothing to write to but /tmp, no network."""
    closed = ("--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--rm")
    return docker("run", *closed, "--security-opt=no-new-privileges", image(target), *command)


def own_bytes(target: str) -> int:
    """Without its base: layers beyond those that the base has, whose names agree."""
    one = json.loads(docker("image", "inspect", image(target)))[0]
    base = one["Config"]["Labels"]["org.opencontainers.image.base.name"]
    below = json.loads(docker("image", "inspect", base))[0]
    layers = below["RootFS"]["Layers"]
    assert one["RootFS"]["Layers"][: len(layers)] == layers, f"{target} does not stand on {base}"
    return int(one["Size"]) - int(below["Size"])


def test_the_gateway_is_small():
    assert own_bytes("gateway") < GATEWAY_LIMIT_BYTES


@pytest.mark.parametrize("target", FLAVOURS)
def test_an_image_has_neither_rights_nor_tools(target: str):
    assert run(target, "id", "-u") == "10001"
    tools = "for t in gcc cc g++ c++ ld make pip pip3; do command -v $t || true; done"
    assert run(target, "sh", "-c", tools) == ""
    setuid = "find / -xdev -perm -4000 -user root -path '/opt/*' 2>/dev/null; :"
    assert run(target, "sh", "-c", setuid) == ""
    writable = "find / -xdev -writable -type f -not -path '/proc/*' 2>/dev/null | head; :"
    assert run(target, "sh", "-c", writable) == ""


@pytest.mark.parametrize("target", FLAVOURS)
def test_an_image_is_labelled_and_tells_no_settings_of_its_build(target: str):
    one = json.loads(docker("image", "inspect", image(target)))[0]
    labels = one["Config"]["Labels"]
    for name in ("title", "version", "revision", "created", "licenses", "base.name"):
        assert labels[f"org.opencontainers.image.{name}"] not in ("", "unknown")
    told = json.dumps(one["Config"]) + docker("history", "--no-trunc", image(target))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE"):
        if value := os.environ.get(name):
            assert value not in told
    assert "/run/secrets" not in told
    assert (
        run(target, "sh", "-c", "ls /run/secrets /root/.config /etc/pip.conf 2>/dev/null; :") == ""
    )


@pytest.mark.parametrize("target", FLAVOURS)
def test_every_package_is_the_locks(target: str):
    listing = (
        "from importlib.metadata import distributions as d\n"
        "for one in d(): print(one.metadata['Name'] + '==' + one.version.split('+')[0])"
    )
    there = {line.lower() for line in run(target, "python", "-c", listing).splitlines()}
    lock = (ROOT / "requirements.lock").read_text().lower().splitlines()
    beside = {one for one in there if not one.startswith("plinth-llm==")} - set(lock)
    assert not beside
    assert len(there) > 30


def test_the_gateway_has_no_torch_and_runs_what_the_chart_runs_in_it():
    modules = "plinth.gateway.__main__, plinth.cluster.trials.smoke, plinth.cluster.trials.chaos"
    seen = "import sys; print(sorted({'torch', 'ray', 'psutil'} & set(sys.modules)))"
    assert run("gateway", "python", "-c", f"import {modules}; {seen}") == "[]"
    assert "Makes a key" in run("gateway", "plinth", "keys", "create", "--help")
    # As NOTES.txt says it, up to Redis: no package is missing on the way there.
    no_redis = (
        "PLINTH_REDIS_URL=redis://127.0.0.1:1/0 "
        "plinth keys create --local --label x 2>&1 | tail -5; :"
    )
    said = run("gateway", "sh", "-c", no_redis)
    assert "ModuleNotFoundError" not in said and "127.0.0.1:1" in said


def test_the_cpu_image_loads_the_prebuilt_kernels():
    program = (
        "from plinth.kernels import build, library\n"
        "assert str(build.library()) == '/opt/plinth/lib/plinth-kernels.so'\n"
        "library.kernels()\n"
        "print(library.instruction_set())"
    )
    assert run("cpu", "python", "-c", program) in {"avx512", "avx2", "base"}


def test_the_cpu_image_starts_a_ray_node_and_the_stages():
    modules = "plinth.cluster.applications, plinth.cluster.node_drain, plinth.cluster.reconciler"
    stages = ", ".join(
        f"plinth.{stage}.service"
        for stage in ("tokenizer", "trainer", "reward", "coordinator", "inference")
    )
    assert run("cpu", "python", "-c", f"import {modules}, {stages}; print('all')") == "all"
    assert run("cpu", "bash", "-c", "ray --version").startswith("ray, version 2.60")


def test_the_build_leaves_nothing_of_the_checkout():
    """Only the wheel: no tests, no repository, no source tree."""
    for target in FLAVOURS:
        found = run(target, "sh", "-c", "ls -d /src /docker /opt/tools /wheel 2>/dev/null; :")
        assert found == ""
