"""A stack as other code sees it: bring it up, find it, talk to it, take it down.

The work is done by the supervisor's process; this only starts it, reads what it writes down
(`stack.json`), and tells it to stop.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from redis.asyncio import Redis

from plinth.cluster import ports, processes
from plinth.cluster.layout import (
    MARKER,
    ComponentState,
    Layout,
    StackPlan,
    StackState,
    settings_environment,
)
from plinth.cluster.processes import Identity
from plinth.cluster.supervisor import clear_leftovers
from plinth.shared.connection import connect
from plinth.shared.errors import DataLoss, FailedPrecondition, NotFound, Unavailable
from plinth.shared.identity import cluster_token
from plinth.shared.private_folders import make_private
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.settings import Settings
from plinth.shared.store import ArtifactStore

UP_TIMEOUT_S = 240.0
DOWN_TIMEOUT_S = 15.0
POLL_S = 0.1


@dataclass(frozen=True)
class StackEvent:
    """One component has a new state (`ComponentState.state`)."""

    component: str
    state: ComponentState
    seconds: float  # since the start


OnEvent = Callable[[StackEvent], None]


def _ignore(_: StackEvent) -> None:
    """For callers who don't watch."""


class Stack:
    """The stack on one data directory, running or not."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layout = Layout.of(settings)
        self._supervisor: subprocess.Popen[bytes] | None = None  # if this object started it

    @classmethod
    def up(
        cls,
        settings: Settings,
        on_event: OnEvent = _ignore,
        *,
        plan: StackPlan | None = None,
        owned: bool = False,
        timeout_s: float = UP_TIMEOUT_S,
    ) -> Stack:
        """Starts the stack and returns when every part is ready; at once if it runs already.

        owned: it goes down when this process ends, however that ends. FailedPrecondition: a port
        is taken, Redis is missing, …; Unavailable: a part did not come up in time. Then nothing is
        left running.
        """
        stack = cls(settings)
        if not stack.running():
            # What a killed stack left may hold the very ports; a port of somebody else's is told
            # here, before anything is started.
            clear_leftovers(stack.layout)
            ports.gateway_ports(settings)
            stack._supervisor = stack._spawn(plan or StackPlan(), owned)
        try:
            stack._await_ready(stack._supervisor, on_event, timeout_s)
        except BaseException:
            if stack._supervisor is not None:
                stack.down()
            raise
        return stack

    def running(self) -> bool:
        """Whether a supervisor holds this data directory's lock."""
        try:
            lock = self.layout.lock_file.open("rb")
        except FileNotFoundError:
            return False
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def state(self) -> StackState | None:
        """What the supervisor last wrote down; None when no stack is there."""
        return StackState.read(self.layout.state_file)

    def down(self, *, timeout_s: float = DOWN_TIMEOUT_S) -> int:
        """Stops the stack in order and clears what is left of it (also of a killed one).

        Returns the number of processes that had to be cleared away by force.
        """
        try:
            state = self.state()
        except DataLoss:
            state = None  # the marker finds the processes without it
        if state is not None and self.running():
            supervisor = Identity(state.pid, state.created).process()
            if supervisor is not None:
                processes.end([supervisor], grace_s=timeout_s)
        if self._supervisor is not None:
            self._supervisor.kill()  # does nothing to one that has ended
            self._supervisor.wait()
        return clear_leftovers(self.layout)

    def _spawn(self, plan: StackPlan, owned: bool) -> subprocess.Popen[bytes]:
        make_private(self.layout.logs)
        command = [sys.executable, "-m", "plinth.cluster.supervisor", plan.to_json()]
        if owned:
            own = Identity.of(os.getpid())
            command += [str(own.pid), repr(own.created)]
        environment = {
            **os.environ,
            **settings_environment(self.settings),
            MARKER: self.layout.stack_id,
        }
        with self.layout.log("supervisor").open("ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches `plinth up` alone, which stops in order
            )

    def _await_ready(
        self, process: subprocess.Popen[bytes] | None, on_event: OnEvent, timeout_s: float
    ) -> None:
        began = time.monotonic()
        told: dict[str, tuple[str, str, str]] = {}
        while True:
            state = self.state()
            # An older file, of a stack that was killed, is not ours.
            ours = state is not None and (process is None or state.pid == process.pid)
            if state is not None and ours:
                for name, component in state.components.items():
                    key = (component.state, component.address, component.detail)
                    if told.get(name) != key:
                        told[name] = key
                        on_event(StackEvent(name, component, time.monotonic() - began))
                if state.phase == "ready":
                    return
                if state.phase == "failed":
                    raise FailedPrecondition(state.error, reason="STACK_FAILED")
            if process is not None and process.poll() is not None:
                raise Unavailable(
                    f"the supervisor ended with code {process.returncode}; its log ends:\n"
                    f"{self._log_end('supervisor')}"
                )
            if time.monotonic() - began > timeout_s:
                raise Unavailable(self._late(state, timeout_s))
            time.sleep(POLL_S)

    def _late(self, state: StackState | None, timeout_s: float) -> str:
        parts = state.components if state is not None else {}
        late = [
            f"{name} is {part.state}{': ' + part.detail if part.detail else ''} "
            f"({self.layout.log(name)})"
            for name, part in parts.items()
            if part.state != "ready"
        ]
        return f"the stack was not up after {timeout_s:.0f} s: " + ("; ".join(late) or "no word")

    def _log_end(self, component: str) -> str:
        path = self.layout.log(component)
        return path.read_text(errors="replace")[-1500:] if path.exists() else "(empty)"


def running_state(settings: Settings) -> StackState:
    """The state of the running stack; NotFound, saying what to do, when none runs."""
    stack = Stack(settings)
    state = stack.state() if stack.running() else None
    if state is None or state.phase not in {"starting", "ready"}:
        raise NotFound(
            f"no stack runs on {settings.data_dir}: start one with `plinth up`, or name its "
            "folder with --data",
            reason="STACK_NOT_RUNNING",
        )
    return state


def connect_clients(
    settings: Settings,
) -> tuple[Redis, ArtifactStore, Registry, StageClients]:
    """Redis, store, registry and stage clients of the running stack, for code that may bypass
    the gateway (status, tests). Close the clients, then Redis."""
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
    else:
        url = running_state(settings).redis_url
    redis = connect(url)
    registry = Registry(redis)
    clients = StageClients(registry, settings, cluster_token(settings))
    return redis, ArtifactStore(settings.store()), registry, clients


def leftovers(settings: Settings) -> list[psutil.Process]:
    """Processes of a stack whose supervisor is gone."""
    stack = Stack(settings)
    if stack.running():
        return []
    state = stack.state()
    return processes.of_stack(stack.layout.stack_id, state.sessions if state else [])
