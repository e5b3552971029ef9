"""A real stack of trivial stages on real Ray and Redis: up, healed, reconciled, gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plinth.cluster import processes
from plinth.cluster.layout import StackPlan, StackState, StageSpec
from plinth.cluster.stack import Stack
from plinth.internal.v1.deployments_pb2 import DeploymentRecord
from plinth.shared.errors import FailedPrecondition
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import Settings, load_settings
from plinth.shared.store import ArtifactStore
from trivial_stack import announced, answering, publish_model, told_models, until

PLAN = StackPlan(
    stages=(StageSpec("echo", "trivial_stage:build_echo"),),
    shard=StageSpec("inference", "trivial_stage:build_shard", "inference"),
    gateway="trivial_gateway",
)


def _settings(data: Path) -> Settings:
    return load_settings(data_dir=data, gateway__port=0, gateway__grpc_port=0)


@pytest.fixture(scope="module", autouse=True)
def _stages_can_be_imported() -> Iterator[None]:
    tests = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    up = Stack.up(_settings(tmp_path_factory.mktemp("s")), plan=PLAN)
    yield up
    up.down()


def _of(stack: Stack) -> list[psutil.Process]:
    state = stack.state()
    return processes.of_stack(stack.layout.stack_id, state.sessions if state else [])


def _titled(stack: Stack, title: str) -> psutil.Process:
    found = [p for p in _of(stack) if any(title in part for part in p.cmdline()[:1])]
    assert len(found) == 1, f"{title}: {found}"
    return found[0]


def test_every_listener_is_on_loopback(stack: Stack) -> None:
    listeners = [
        connection.laddr
        for process in _of(stack)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listeners) > 5
    assert {a.ip for a in listeners} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listeners


def test_what_holds_secrets_is_for_its_owner_only(stack: Stack) -> None:
    for path in (stack.layout.state_file, stack.layout.ray_token, stack.layout.ray_dir):
        assert path.stat().st_mode & 0o077 == 0, path


def test_up_on_the_same_data_finds_the_running_stack(stack: Stack) -> None:
    pid = stack.state().pid  # type: ignore[union-attr]
    again = Stack.up(stack.settings, plan=PLAN)
    assert again.state().pid == pid  # type: ignore[union-attr]


def test_models_come_go_and_change(stack: Stack) -> None:
    records = DeploymentRecords(ArtifactStore(stack.settings.store()))
    records.put(DeploymentRecord(name="chat", artifact=publish_model(stack, "chat"), shards=1))
    first = until(lambda: answering(stack, "inference"), "the model is served")[0]
    assert (first.fields["model"], first.fields["artifact"]) == ("chat", "chat@1")
    # One more shard leaves the first alone.
    records.put(DeploymentRecord(name="chat", artifact="chat@1", shards=2))
    two = until(lambda: (s := answering(stack, "inference")) and len(s) == 2 and s, "two shards")
    assert first.id in {replica.id for replica in two}
    until(lambda: told_models(stack)["chat"]["ready"] == 2, "readiness is told")
    records.delete("chat")
    until(lambda: not announced(stack, "inference") and not told_models(stack), "it is gone")


@pytest.mark.slow
def test_a_new_version_takes_over_and_a_broken_one_is_told(stack: Stack) -> None:
    records = DeploymentRecords(ArtifactStore(stack.settings.store()))
    old = publish_model(stack, "roll")
    records.put(DeploymentRecord(name="roll", artifact=old, shards=2))
    until(lambda: len(answering(stack, "inference")) == 2, "two shards")
    # A new version takes over without a moment in which nobody serves.
    records.put(
        DeploymentRecord(name="roll", artifact=publish_model(stack, "roll", "new"), shards=2)
    )
    gaps = 0

    def taken_over() -> bool:
        nonlocal gaps
        serving = answering(stack, "inference")
        gaps += not serving
        return [r.fields["artifact"] for r in serving] == ["roll@2"] * 2

    until(taken_over, "the new version")
    assert not gaps
    # Another model that can't be loaded is told, and hurts nobody.
    records.put(DeploymentRecord(name="broken", artifact=publish_model(stack, "broken"), shards=1))
    until(lambda: told_models(stack).get("broken", {}).get("state") == "failed", "failure is told")
    assert "can't be loaded" in stack.layout.log("inference-broken").read_text()
    assert len(answering(stack, "inference")) == 2
    for name in ("roll", "broken"):
        records.delete(name)
    until(lambda: not announced(stack, "inference") and not told_models(stack), "both are gone")


def test_a_killed_replica_answers_again(stack: Stack) -> None:
    before = answering(stack, "echo")[0]
    _titled(stack, "ServeReplica:echo").kill()
    after = until(lambda: answering(stack, "echo", before.id), "a successor", 30)
    assert after[0].id != before.id


def test_a_killed_gateway_and_redis_come_back(stack: Stack) -> None:
    state = stack.state()
    assert state is not None
    os.kill(state.components["gateway"].pid, signal.SIGKILL)
    os.kill(state.components["redis"].pid, signal.SIGKILL)

    def healed() -> bool:
        now = stack.state()
        assert now is not None
        parts = [now.components[name] for name in ("gateway", "redis")]
        return all(part.state == "ready" and part.restarts == 1 for part in parts)

    until(healed, "gateway and Redis", 30)
    until(lambda: answering(stack, "echo"), "announced again in the new Redis", 30)
    with socket.create_connection((state.gateway_host, state.gateway_port), 2):
        pass


@pytest.mark.slow
def test_a_killed_serve_controller_comes_back(stack: Stack) -> None:
    before = answering(stack, "echo")[0]
    old = _titled(stack, "ServeController")
    old.kill()
    old.wait(10)
    until(lambda: [p for p in _of(stack) if "ServeController" in p.cmdline()[0]], "a controller")
    # It took over the replicas that were there, and still supervises them.
    assert before.id in {replica.id for replica in answering(stack, "echo")}
    _titled(stack, "ServeReplica:echo").kill()
    until(lambda: answering(stack, "echo", before.id), "a successor")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_killed_part_of_ray_restarts_ray_whole(stack: Stack, part: str) -> None:
    before = answering(stack, "echo")[0]
    _titled(stack, part).kill()
    after = until(lambda: answering(stack, "echo", before.id), "Ray and its stages")
    assert len(after) == 1
    until(lambda: len(answering(stack, "reconciler")) == 1, "the reconciler")
    assert stack.state().components["ray"].state == "ready"  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_a_killed_supervisor_left_is_cleared(stack: Stack, tmp_path: Path) -> None:
    """By the next `up` on the same ports, and by `down`; the stack beside it is not touched."""
    other = Stack.up(_settings(tmp_path / "other"), plan=PLAN)
    first = _kill_supervisor(other)
    fixed = load_settings(
        data_dir=other.settings.data_dir,
        gateway__port=first.gateway_port,
        gateway__grpc_port=first.gateway_grpc_port,
    )
    again = Stack.up(fixed, plan=PLAN)
    assert again.state().gateway_port == first.gateway_port  # type: ignore[union-attr]
    _kill_supervisor(again)
    assert again.down() > 5
    assert other.down() == 0
    _assert_gone(again)
    assert answering(stack, "echo")


def _kill_supervisor(stack: Stack) -> StackState:
    state = stack.state()
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: not stack.running(), "the supervisor is dead", 10)
    assert len(_of(stack)) > 5
    return state


@pytest.mark.slow
def test_down_leaves_nothing(tmp_path: Path) -> None:
    stack = Stack.up(_settings(tmp_path / "d"), plan=PLAN)
    state = stack.state()
    assert state is not None
    began = time.monotonic()
    assert stack.down() == 0, "a process had to be killed"
    assert time.monotonic() - began < 10
    _assert_gone(stack)
    left = {path.name for path in stack.settings.data_dir.iterdir()}
    assert left == {"logs", "redis", "secrets", "stack.lock", "store"}
    for port in (state.gateway_port, state.gateway_grpc_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_an_owner_takes_its_stack_along_however_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from test_cluster_stack import PLAN, Stack, _settings\n"
        "stack = Stack.up(_settings(Path(sys.argv[1])), plan=PLAN, owned=True)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    folders = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    stack = Stack(_settings(tmp_path / "o"))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(stack.settings.data_dir)],
        env={**os.environ, "PYTHONPATH": folders},
        stdout=subprocess.PIPE,
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"up\n"
            assert stack.running()
        finally:
            owner.kill()
    until(lambda: not stack.running(), "the stack follows its owner", 15)
    until(lambda: not _of(stack), "its supervisor's process ends", 10)
    _assert_gone(stack)


def _assert_gone(stack: Stack) -> None:
    assert not _of(stack)
    assert not stack.layout.ray_dir.exists()
    assert not stack.layout.stopping.exists()
    assert not stack.layout.state_file.exists()


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = load_settings(data_dir=tmp_path / "p", gateway__port=port)
        with pytest.raises(FailedPrecondition) as caught:
            Stack.up(settings, plan=PLAN)
    assert str(port) in caught.value.message
    assert str(os.getpid()) in caught.value.message
    assert "PLINTH_GATEWAY__PORT" in caught.value.message
    assert not (tmp_path / "p").exists()
