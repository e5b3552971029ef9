from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from patience import PATIENCE_S
from plinth.cluster import processes
from plinth.cluster.layout import MARKER
from plinth.cluster.processes import Identity

# Says so when it is there, so that no test kills an interpreter that is still starting.
SLEEP = "print('up', flush=True); import time; time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str = SLEEP, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_only_the_stacks_own_processes_end(start: Start) -> None:
    ours, deaf = start(**{MARKER: "stack-a"}), start(DEAF, **{MARKER: "stack-a"})
    other, plain = start(**{MARKER: "stack-b"}), start()
    assert {p.pid for p in processes.of_stack("stack-a")} == {ours.pid, deaf.pid}
    assert processes.end_stack("stack-a", grace_s=0.3) == 2
    assert ours.poll() is not None
    assert deaf.poll() is not None
    assert other.poll() is None
    assert plain.poll() is None


def test_a_session_alone_makes_no_process_ours(start: Start) -> None:
    """Its environment is there and bears no mark: the session id was given to somebody else."""
    plain = start()
    assert processes.of_stack("stack-a", [plain.pid]) == []


def test_the_caller_and_its_ancestors_are_spared(start: Start) -> None:
    code = (
        "from plinth.cluster import processes; import os; "
        "print('up', flush=True); print(len(processes.of_stack('stack-c')), flush=True)"
    )
    process = start(code, **{MARKER: "stack-c"})
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"


def test_an_identity_is_not_fooled_by_a_reused_pid(start: Start) -> None:
    process = start()
    identity = Identity.of(process.pid)
    assert identity.alive()
    assert not Identity(process.pid, identity.created - 3600).alive()
    process.kill()
    end = time.monotonic() + PATIENCE_S
    while identity.alive():  # a zombie is not alive
        assert time.monotonic() < end
    process.wait()
    assert identity.process() is None
