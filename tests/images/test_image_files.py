"""What the files in docker/ say, against the code, the chart and the lock; needs no engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import code_facts
from plinth.cluster.applications import read_configuration, spec_of
from plinth.cluster.layout import StackPlan
from plinth.shared.errors import InvalidArgument
from plinth.shared.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
IMAGES = ("gateway", "cpu", "cuda")
CHART = ROOT / "charts" / "plinth"
# The oldest Python of a supported base image (Debian 12); it wants more packages than 3.11.3.
OLDEST = {"python_full_version": "3.11.2", "python_version": "3.11"}


def _stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages: name to [(instruction, what follows)], its FROM first."""
    text = (DOCKER / "Dockerfile").read_text()
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: dict[str, list[tuple[str, str]]] = {}
    lines: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        assert word.isupper(), f"no instruction: {line}"
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            assert name not in stages, f"{name} comes twice"
            lines = stages[name] = [("FROM", base)]
        else:
            lines.append((word, rest.strip()))
    return stages


STAGES = _stages()


def _ancestry(stage: str) -> Iterator[tuple[str, str]]:
    """Every instruction that ends up in a stage, from its base on."""
    base = STAGES[stage][0][1]
    if base in STAGES:
        yield from _ancestry(base)
    yield from STAGES[stage]


def _last(stage: str, word: str) -> str:
    return [rest for found, rest in _ancestry(stage) if found == word][-1]


def _compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DOCKER / "compose.yaml").read_text()))


SERVICES: dict[str, dict[str, Any]] = _compose()["services"]


def _filled(value: str) -> str:
    """A value of compose.yaml with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def _environment(service: str) -> dict[str, str]:
    return {k: _filled(str(v)) for k, v in SERVICES[service]["environment"].items()}


def test_every_image_of_the_chart_is_a_target_and_every_stage_is_built_from_one_that_is_there():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for target in IMAGES:
        assert target in STAGES
        assert values["images"][target]["repository"] == f"plinth/{target}"
    known = {*STAGES, "scratch", "${BASE}", "${FLAVOUR}"}
    for name, lines in STAGES.items():
        assert lines[0][1] in known, name
        for word, rest in lines[1:]:
            for source in re.findall(r"from=([\w-]+)", rest):
                assert source in STAGES, f"{name}: {word} takes from {source}"


def test_an_image_runs_as_the_charts_user_and_holds_no_compiler():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    context = values["defaults"]["podSecurityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    for target in IMAGES:
        assert _last(target, "USER") == user
        installed = " ".join(rest for word, rest in _ancestry(target) if word == "RUN")
        assert f"--uid {context['runAsUser']}" in installed
        assert not re.search(r"g\+\+|gcc|build-essential|python3-(dev|pip|venv)", installed)
    assert "g++" in " ".join(rest for _, rest in _ancestry("kernels"))


def test_the_kernels_lie_where_the_image_says_and_the_gateway_has_none():
    for target in ("cpu", "cuda"):
        copied = next(r for w, r in STAGES[target] if w == "COPY" and "--from=kernels" in r)
        named = re.search(r"PLINTH_KERNELS=(\S+)", " ".join(r for _, r in STAGES[target]))
        assert named and named[1] == copied.split()[-1] + Path(copied.split()[-2]).name
    assert "kernels" not in " ".join(rest for _, rest in _ancestry("gateway"))


def test_the_gateway_starts_a_program_that_exists_on_ports_that_the_chart_names():
    command = json.loads(_last("gateway", "CMD"))
    assert command[:2] == ["python", "-m"] and code_facts.module_file(command[2])
    values = yaml.safe_load((CHART / "values.yaml").read_text())["gateway"]["service"]
    assert _last("gateway", "EXPOSE") == f"{values['restPort']} {values['grpcPort']}"


@pytest.mark.parametrize("script", ["install.sh", "plinth-env", "secrets.sh"])
def test_a_script_parses(script: str):
    subprocess.run(["sh", "-n", DOCKER / script], check=True)


def test_a_client_without_buildkit_is_told_before_a_base_is_made(tmp_path: Path):
    client = tmp_path / "docker"
    client.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        "version) echo 28.2.2 ;;\n"
        'build) echo "ERROR: the buildx component is missing" >&2; exit 1 ;;\n'
        "*) echo asked for $1 >&2; exit 99 ;;\nesac\n"
    )
    client.chmod(0o755)
    done = subprocess.run(
        ["bash", DOCKER / "images.sh"],
        env={**os.environ, "DOCKER": str(client), "MIRROR": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "buildx" in done.stderr and str(client) in done.stderr and "DOCKER=" in done.stderr
    assert "asked for" not in done.stderr and not done.stdout


@pytest.mark.parametrize("script", ["images.sh", "base.sh"])
def test_a_bash_script_parses(script: str):
    subprocess.run(["bash", "-n", DOCKER / script], check=True)


@pytest.mark.parametrize("extra", ["gateway", "local"])
def test_the_lock_holds_all_that_an_image_needs_on_the_oldest_python(extra: str):
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    lock = {canonicalize_name(line.partition("==")[0]) for line in lines}
    project = canonicalize_name("plinth-llm")
    seen: set[tuple[str, str]] = set()
    open_: list[tuple[str, str]] = [(project, extra), (project, "")]
    while open_:
        name, wanted = open_.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        assert name == project or name in lock, f"requirements.lock lacks {name}"
        for text in _requirements(name):
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({**OLDEST, "extra": wanted}):
                found = canonicalize_name(one.name)
                open_ += [(found, ""), *((found, other) for other in one.extras)]
    assert len(seen) > 20


def _requirements(name: str) -> list[str]:
    if name == "plinth-llm":
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"].items()
        return [
            *project["dependencies"],
            *(f'{text} ; extra == "{extra}"' for extra, texts in extras for text in texts),
        ]
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []  # of the oldest Python only: nothing here can say what it needs


# -- compose.yaml -----------------------------------------------------------------------------


def test_compose_runs_the_charts_images_closed_and_without_rights():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    redis = values["images"]["redis"]
    assert _filled(SERVICES["redis"]["image"]) == f"redis:{redis['tag']}"
    for name, service in SERVICES.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "healthcheck" in service
        assert "privileged" not in service and "cap_add" not in service
        assert "inside" in service["networks"]
        if name != "redis":
            flavour = "gateway" if name == "gateway" else "cpu"
            assert _filled(service["image"]) == f"plinth/{flavour}:{version}"
            assert service["user"] == _last(flavour, "USER")
    assert _compose()["networks"]["inside"] == {"internal": True}


def test_only_the_gateway_has_a_door_and_it_is_on_loopback():
    for name, service in SERVICES.items():
        if name == "gateway":
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        else:
            assert "ports" not in service and service["networks"] == ["inside"]


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "redis"])
def test_plinth_takes_what_a_service_sets(service: str):
    environment = _environment(service)
    assert not any("token" in k.lower() and "PATH" not in k for k in environment), "a secret"
    with mock.patch.dict(os.environ, environment, clear=True):
        settings = load_settings(cluster_token="x" * 48, redis_url="redis://redis:6379/1")
    assert settings.log_to == "stderr"
    if service == "gateway":
        assert (settings.gateway.host, settings.gateway.port) == ("0.0.0.0", 8080)
        assert settings.gateway.grpc_port == 8081
    wrong = {**environment, "PLINTH_NO_SUCH": "1"}
    with mock.patch.dict(os.environ, wrong, clear=True), pytest.raises(InvalidArgument):
        load_settings()


def test_every_stage_is_applied_and_finds_room_on_a_node():
    found = read_configuration(DOCKER / "applications.yaml")
    specs = [spec_of(one["args"]) for one in found["applications"]]
    assert {s.name for s in specs} == {s.name for s in StackPlan().stages} | {"reconciler"}
    specs.append(spec_of(specs[-1].options["shard"]))
    assert all(code_facts.has_function(spec.factory) for spec in specs)
    offers = json.loads(_environment("stages")["OFFERS"])
    shard = re.search(r"--resources='(\{.*?\})'", SERVICES["shard"]["command"][-1])
    assert shard is not None
    offers |= json.loads(shard[1])
    for spec in specs:
        assert spec.resources and all(offers[k] >= v for k, v in spec.resources.items())
    with mock.patch.dict(os.environ, _environment("stages"), clear=True):
        assert load_settings(cluster_token="x" * 48).trainer.worker_resource in offers


def test_secrets_are_made_once_for_the_owner_and_are_those_that_compose_mounts(tmp_path: Path):
    folder = tmp_path / "secrets"
    subprocess.run(["sh", DOCKER / "secrets.sh", folder], check=True)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert set(made) == set(_compose()["secrets"])
    assert all(re.fullmatch(r"[0-9a-f]{48}", text) for text in made.values())
    assert len(set(made.values())) == len(made)
    assert folder.stat().st_mode & 0o077 == 0
    subprocess.run(["sh", DOCKER / "secrets.sh", folder], check=True)
    assert made == {path.name: path.read_text() for path in folder.iterdir()}


def test_a_container_announces_its_own_address():
    shown = subprocess.run(
        ["sh", DOCKER / "plinth-env", "env"],
        env={"PATH": os.environ["PATH"], "POD_IP": "10.1.2.3"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "PLINTH_ADVERTISE_HOST=10.1.2.3" in shown.splitlines()
