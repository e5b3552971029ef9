from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from patience import PATIENCE_S
from plinth.cluster import parts
from plinth.cluster.layout import ComponentState
from plinth.cluster.parts import Backoff, ChildPart, GatewayPart, HeadPart, RedisPart
from plinth.cluster.ports import free_port
from plinth.cluster.supervisor import is_up

Told = list[tuple[str, ComponentState]]


def _until(
    condition: Callable[[], object], poll: Callable[[], object], limit_s: float = PATIENCE_S
) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        poll()
        time.sleep(0.02)


@pytest.fixture
def told() -> Told:
    return []


def test_a_dead_child_is_started_again_and_stopped_for_good(tmp_path: Path, told: Told) -> None:
    command = [sys.executable, "-c", "print('hello', flush=True); import time; time.sleep(60)"]
    part = ChildPart(
        "child", command, os.environ, tmp_path / "child.log", lambda n, s: told.append((n, s))
    )
    part.start()
    first = part.pid
    log = tmp_path / "child.log"
    _until(lambda: log.read_text() == "hello\n", part.poll)
    os.kill(first, signal.SIGKILL)
    _until(lambda: part.pid not in (0, first), part.poll)
    assert [state.state for _, state in told] == ["starting", "restarting", "restarting"]
    assert "code -9" in told[1][1].detail
    assert told[-1][1].restarts == 1
    _until(lambda: log.read_text() == "hello\nhello\n", part.poll)
    part.stop(5)
    assert part._process is not None
    assert part._process.returncode == -15


def test_a_child_that_cannot_start_does_not_spin(tmp_path: Path, told: Told) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    part = ChildPart("child", command, {}, tmp_path / "log", lambda n, s: told.append((n, s)))
    part.start()
    began = time.monotonic()
    _until(lambda: len([s for _, s in told if "code 7" in s.detail]) == 3, part.poll)
    # The first restart comes at once, the second after a second.
    assert time.monotonic() - began > parts.BACKOFF_S[1]
    part.stop(1)


def test_what_the_head_tells_is_passed_on_and_doubted_when_it_dies(
    tmp_path: Path, told: Told
) -> None:
    line = '{"component": "echo", "state": "ready", "address": "a", "detail": ""}'
    command = [sys.executable, "-c", f"print('noise'); print('{line}', flush=True); input()"]
    cleared: list[int] = []
    part = HeadPart(
        command, os.environ, tmp_path / "log", lambda n, s: told.append((n, s)), cleared.append
    )
    part.start()
    pid = part.pid
    _until(lambda: part.components == {"echo"}, part.read)
    _until(lambda: cleared == [pid], part.poll)  # input() meets the end of /dev/null
    states = [(n, s.state) for n, s in told]
    assert states.index(("echo", "ready")) < states.index(("echo", "restarting"))
    part.stop(1)


def test_the_gateway_is_ready_when_it_answers_and_restarted_when_it_stops(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PROBE_PERIOD_S", 0.05)
    port = free_port()
    variables = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PLINTH_DATA_DIR": str(tmp_path),
        "PLINTH_GATEWAY__PORT": str(port),
    }
    part = GatewayPart(
        [sys.executable, "-m", "trivial_gateway"],
        variables,
        tmp_path / "log",
        lambda n, s: told.append((n, s)),
        ("127.0.0.1", port),
    )
    part.start()
    _until(lambda: told[-1][1].state == "ready", part.poll)
    assert told[-1][1].address == f"http://127.0.0.1:{port}"
    first = part.pid
    # Alive but dumb.
    os.kill(first, signal.SIGSTOP)
    _until(lambda: part.pid not in (0, first) and told[-1][1].state == "ready", part.poll, 40)
    part.stop(5)


def test_a_killed_redis_comes_back_with_its_data(tmp_path: Path, told: Told) -> None:
    part = RedisPart(tmp_path, lambda n, s: told.append((n, s)))
    url = part.start()
    with redis.Redis.from_url(url) as client:
        client.set("kept", "yes")
    assert part.server.pid is not None
    os.kill(part.server.pid, signal.SIGKILL)
    _until(lambda: told[-1][1].restarts == 1 and told[-1][1].state == "ready", part.poll)
    with redis.Redis.from_url(url) as client:
        assert client.get("kept") == b"yes"
    part.stop()


def test_back_off_forgets_after_a_long_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    backoff = Backoff()
    waits = []
    for _ in range(7):
        backoff.started()
        backoff.failed()
        waits.append(backoff._not_before - now[0])
    assert waits == [0.0, 1.0, 2.0, 5.0, 10.0, 10.0, 10.0]
    backoff.started()
    now[0] += parts.HEALTHY_AFTER_S + 1
    backoff.failed()
    assert backoff.due()


@pytest.mark.parametrize(
    ("components", "up"),
    [
        ({"redis": "ready", "reconciler": "ready"}, True),
        ({"redis": "starting", "reconciler": "ready"}, False),
        ({"redis": "ready", "reconciler": "starting"}, False),
        ({"redis": "ready", "reconciler": "starting", "inference-a": "failed"}, True),
        ({"redis": "ready", "reconciler": "ready", "inference-a": "starting"}, False),
        (
            {
                "redis": "ready",
                "reconciler": "starting",
                "inference-a": "failed",
                "inference-b": "starting",
            },
            False,
        ),
    ],
)
def test_up_means_all_parts_and_every_model_that_can_be_served(
    components: dict[str, str], up: bool
) -> None:
    assert is_up({name: ComponentState(state) for name, state in components.items()}) is up
