"""The bare stack keeps to its budget: seconds to come up and go, memory, idle processor time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plinth.cluster import processes
from plinth.cluster.layout import StackPlan
from plinth.cluster.stack import Stack
from plinth.cluster.status import memory_bytes
from plinth.shared.settings import load_settings

pytestmark = pytest.mark.slow

UP_S = 45.0
DOWN_S = 10.0
MEMORY_BYTES = 2.2 * (1 << 30)
IDLE_CORES = 0.2
IDLE_WINDOW_S = 20.0
SETTLE_S = 5.0


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, float]]:
    """Plinth's own parts on an empty data directory, and the seconds that it took to come up, less
    those for which other processes had the machine."""
    with pytest.MonkeyPatch.context() as patch:
        tests = str(Path(__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        settings = load_settings(
            data_dir=tmp_path_factory.mktemp("bare"), gateway__port=0, gateway__grpc_port=0
        )
        began, busy = time.monotonic(), _busy_s()
        stack = Stack.up(settings, plan=StackPlan())
        others = _busy_s() - busy - sum(_cpu_s(stack).values())
        yield stack, time.monotonic() - began - others / (psutil.cpu_count() or 1)
        stack.down()


def _processes(stack: Stack) -> list[psutil.Process]:
    state = stack.state()
    assert state is not None
    return processes.of_stack(state.stack_id, state.sessions)


def _cpu_s(stack: Stack) -> dict[int, float]:
    return {p.pid: sum(p.cpu_times()[:2]) for p in _processes(stack)}


def _busy_s() -> float:
    """Processor time of all processes since the machine's start, over its cores."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def test_it_comes_up_in_time(timed: tuple[Stack, float]) -> None:
    assert timed[1] < UP_S


def test_all_its_sockets_are_on_loopback(timed: tuple[Stack, float]) -> None:
    listening = [
        connection.laddr.ip
        for process in _processes(timed[0])
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 8
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_it_is_small_and_quiet(timed: tuple[Stack, float]) -> None:
    stack, _ = timed
    assert sum(memory_bytes(p) for p in _processes(stack)) < MEMORY_BYTES
    time.sleep(SETTLE_S)  # what starting left to do
    before = _cpu_s(stack)
    time.sleep(IDLE_WINDOW_S)
    after = _cpu_s(stack)
    used = sum(after[pid] - before.get(pid, 0.0) for pid in after)
    assert used / IDLE_WINDOW_S < IDLE_CORES


def test_it_is_gone_in_time(timed: tuple[Stack, float]) -> None:
    """Last in the file: the stack is down afterwards."""
    stack, _ = timed
    began = time.monotonic()
    assert stack.down() == 0
    assert time.monotonic() - began < DOWN_S
    assert stack.state() is None
