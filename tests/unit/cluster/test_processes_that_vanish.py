"""A process that ends, or is closed to us, between two questions ends neither the supervisor nor
the ending of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from plinth.cluster import ports, processes
from plinth.cluster.layout import Layout, StackPlan, StackState
from plinth.cluster.processes import Identity
from plinth.cluster.stack import Stack
from plinth.cluster.supervisor import Supervisor
from plinth.shared.settings import load_settings

FAULTS = [
    psutil.NoSuchProcess(1),
    psutil.ZombieProcess(1),
    psutil.AccessDenied(1),
    psutil.Error("?"),
    ProcessLookupError(3, "gone"),
    OSError(24, "too many open files"),
]
QUESTIONS = (
    *("create_time", "status", "environ", "uids", "parents", "ppid", "name", "terminate", "kill"),
)


@pytest.fixture(params=FAULTS, ids=lambda fault: type(fault).__name__)
def fault(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield started
    started.kill()
    started.wait()


@pytest.mark.parametrize("question", QUESTIONS)
def test_nothing_that_looks_at_processes_raises(
    question: str, fault: Exception, process: subprocess.Popen[bytes], monkeypatch: Any
) -> None:
    identity, victim = Identity.of(process.pid), psutil.Process(process.pid)

    def fails(*_: object) -> None:
        raise fault

    gone = isinstance(fault, psutil.NoSuchProcess)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "status", fails)
        assert identity.alive() is not gone  # in doubt, it lives: its stack must not go down
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, question, fails)
        identity.alive()
        Identity.of_child(process)
        processes.of_stack("none-of-this-name")
        if question in ("terminate", "kill"):
            processes.end([victim], grace_s=0.0)
        ports.holder(1)


class Owner:
    """An owner that can be asked three times."""

    def __init__(self, error: BaseException) -> None:
        self.asked, self.error = 0, error

    def alive(self) -> bool:
        self.asked += 1
        if self.asked > 3:
            raise self.error
        return True


@pytest.mark.parametrize("where", ["start", "owner", "poll"])
@pytest.mark.parametrize("error", [psutil.AccessDenied(1), RuntimeError("a bug"), KeyError("x")])
def test_whatever_ends_the_supervisor_leaves_no_stack(
    where: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(data_dir=tmp_path / "data")
    supervisor = Supervisor(settings, StackPlan(), None)
    ended: list[str] = []

    def fails() -> None:
        ended.clear()
        raise error

    monkeypatch.setattr("plinth.cluster.supervisor.signal.signal", lambda *_: None)
    monkeypatch.setattr("plinth.cluster.supervisor.POLL_S", 0.0)
    monkeypatch.setattr(processes, "end_stack", lambda stack_id, *_, **__: ended.append(stack_id))
    monkeypatch.setattr(supervisor, "_start", fails if where == "start" else lambda: None)
    polls = [0]

    def poll() -> None:
        polls[0] += 1
        if where == "poll" and polls[0] == 2 and not isinstance(error, psutil.Error):
            raise error
        if polls[0] > 5:
            supervisor._stop = True

    monkeypatch.setattr(supervisor, "_poll", poll)
    supervisor._owner = Owner(error) if where == "owner" else None  # type: ignore[assignment]
    code = supervisor.run()
    assert supervisor._lock is not None
    supervisor._lock.close()
    assert ended[-1:] == [Layout.of(settings).stack_id]
    state = StackState.read(Layout.of(settings).state_file)
    if where == "poll" and isinstance(error, psutil.Error):
        assert (code, state) == (0, None)
    else:
        assert code == 1
        assert state is not None
        assert (state.phase, bool(state.error)) == ("failed", True)


def test_down_goes_on_when_the_supervisor_ends_by_itself(
    tmp_path: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(data_dir=tmp_path / "data")
    settings.ensure_data_dir()
    stack = Stack(settings)
    identity = Identity.of(process.pid)
    state = StackState(stack.layout.stack_id, pid=identity.pid, created=identity.created)
    state.write(stack.layout.state_file)
    monkeypatch.setattr(stack, "running", lambda: True)
    terminate = psutil.Process.terminate

    def too_late(found: psutil.Process) -> None:
        process.kill()
        process.wait()
        terminate(found)  # raises NoSuchProcess

    monkeypatch.setattr(psutil.Process, "terminate", too_late)
    assert stack.down() == 0
    assert not stack.layout.state_file.exists()


def test_a_child_that_ended_at_once_is_no_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert Identity.of_child(child).pid == child.pid
    assert os.getpid() not in {found.pid for found in processes.of_stack("x")}
