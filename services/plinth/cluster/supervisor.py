"""The process behind `plinth up`: starts the parts of a stack, keeps them alive, stops them.

Run by `Stack.up`: `python -m plinth.cluster.supervisor PLAN [OWNER_PID OWNER_CREATED]`. It holds
the data directory's lock as long as it lives, and writes `stack.json` at every change. With an
owner (a `plinth up` in the foreground) it stops the stack when that process is gone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from plinth.cluster import ports, processes, ray_local
from plinth.cluster.layout import (
    MARKER,
    ComponentState,
    Layout,
    StackPlan,
    StackState,
    settings_environment,
)
from plinth.cluster.parts import GatewayPart, HeadPart, RedisPart
from plinth.cluster.processes import Identity
from plinth.shared.connection import connect
from plinth.shared.errors import DataLoss, FailedPrecondition, PlinthError
from plinth.shared.private_folders import make_private
from plinth.shared.schema import claim_redis
from plinth.shared.settings import Settings, load_settings
from plinth.shared.settings_values import spelled, variable
from plinth.shared.telemetry import configure_logging, get_logger

POLL_S = 0.25
GATEWAY_STOP_S = 2.5
HEAD_STOP_S = 6.5


class Supervisor:
    """One stack, from its first process to its last."""

    def __init__(self, settings: Settings, plan: StackPlan, owner: Identity | None) -> None:
        self._settings = settings
        self._plan = plan
        self._owner = owner
        self._layout = Layout.of(settings)
        self._log = get_logger("plinth.cluster.supervisor")
        self._stop = False
        self._lock: IO[bytes] | None = None
        self._redis: RedisPart | None = None
        self._head: HeadPart | None = None
        self._gateway: GatewayPart | None = None
        own = Identity.of(os.getpid())
        self._state = StackState(self._layout.stack_id, pid=own.pid, created=own.created)
        self._state.sessions = [os.getsid(0)]

    def run(self) -> int:
        """Until told to stop. 1 when the stack could not be started."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._lock = take_lock(self._layout)
        clear_leftovers(self._layout)
        try:
            self._start()
            while not self._stop and (self._owner is None or self._owner.alive()):
                try:
                    self._poll()
                except (OSError, psutil.Error) as error:
                    # A process that ends while it is looked at, a full disk, no memory for one:
                    # what runs goes on, the next poll tries again. Logging may fail as well.
                    with suppress(OSError):
                        self._log.warning("poll failed", error=str(error))
                time.sleep(POLL_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, no process is left behind
            known = isinstance(error, PlinthError)
            told = error.message if isinstance(error, PlinthError) else f"{error!r}"
            with suppress(OSError):
                self._log.error("the stack can't run", error=told, exc_info=not known)
            self._shut_down()
            self._state.phase, self._state.error = "failed", told
            self._write()
            return 1
        self._shut_down()
        self._layout.state_file.unlink(missing_ok=True)
        return 0

    def _start(self) -> None:
        rest, grpc = ports.gateway_ports(self._settings)
        gateway = self._settings.gateway
        self._state.gateway_host, self._state.gateway_port = gateway.host, rest
        self._state.gateway_grpc_port = grpc
        self._state.ray_dir = str(self._layout.ray_dir)
        self._layout.stopping.unlink(missing_ok=True)
        self._write()
        ray_local.ensure_token(self._layout)
        if self._settings.redis_url is None:
            self._report("redis", ComponentState())
            self._redis = RedisPart(self._settings.data_dir, self._report)
            self._state.redis_url = self._redis.start()
        else:
            self._state.redis_url = self._settings.redis_url.get_secret_value()
        asyncio.run(_claim_redis(self._state.redis_url, self._settings.release))
        environment = {
            **os.environ,
            **settings_environment(self._settings),
            MARKER: self._layout.stack_id,
            "PLINTH_REDIS_URL": self._state.redis_url,
            "PLINTH_GATEWAY__PORT": str(rest),
            "PLINTH_GATEWAY__GRPC_PORT": str(grpc),
            variable("source_roots"): spelled(source_roots(self._settings)),
        }
        self._start_head(environment)
        self._start_gateway(environment, (gateway.host, rest))

    def _start_head(self, environment: dict[str, str]) -> None:
        if self._settings.ray_address is None:
            environment = ray_local.environment(self._layout, environment)
        self._head = HeadPart(
            [sys.executable, "-m", "plinth.cluster.ray_head", self._plan.to_json()],
            environment,
            self._layout.log("ray"),
            self._report,
            self._clear_session,
        )
        self._head.start()
        for spec in self._plan.stages:
            self._report(spec.name, ComponentState())
        self._report("reconciler", ComponentState())

    def _start_gateway(self, environment: dict[str, str], address: tuple[str, int]) -> None:
        if not self._plan.gateway:
            return
        self._gateway = GatewayPart(
            [sys.executable, "-m", self._plan.gateway],
            environment,
            self._layout.log("gateway"),
            self._report,
            address,
            tls=self._settings.gateway.tls.on,
        )
        self._gateway.start()

    def _poll(self) -> None:
        if self._redis is not None:
            self._redis.poll()
        assert self._head is not None
        self._head.read()
        self._head.poll()
        if self._gateway is not None:
            self._gateway.poll()
        if self._state.phase == "starting" and is_up(self._state.components):
            self._state.phase = "ready"
            self._state.ready_s = time.time() - self._state.started
            self._log.info("the stack is up", seconds=round(self._state.ready_s, 1))
            self._write()

    def _report(self, name: str, told: ComponentState) -> None:
        before = self._state.components.get(name)
        if told.state == "stopping":
            # A served model that goes: Serve forgets it without a last word.
            self._state.components.pop(name, None)
        else:
            if before is not None:
                told.pid, told.created = told.pid or before.pid, told.created or before.created
                told.address = told.address or before.address
                told.restarts = max(told.restarts, before.restarts)
                if before.state == "ready" and told.state in {"restarting", "failed"}:
                    told.restarts += told.restarts == before.restarts
            self._state.components[name] = told
        if told.pid:
            session = _session(told.pid)
            if session and session not in self._state.sessions:
                self._state.sessions.append(session)
        self._log.info("component", name=name, state=told.state, detail=told.detail)
        self._write()

    def _clear_session(self, session: int) -> None:
        """Ends what a dead Ray head left: workers that have not noticed yet, Ray's agents."""
        left = [
            process
            for process in processes.of_stack(self._layout.stack_id, [session])
            if _session(process.pid) == session
        ]
        processes.end(left, grace_s=0.0)

    def _shut_down(self) -> None:
        """The gateway first, then the stages, then Redis, which they need to the last."""
        self._state.phase = "stopping"
        self._write()
        self._layout.stopping.touch()
        if self._gateway is not None:
            self._gateway.stop(GATEWAY_STOP_S)
        if self._head is not None:
            self._head.stop(HEAD_STOP_S)
        if self._redis is not None:
            self._redis.stop()
        processes.end_stack(self._layout.stack_id, self._state.sessions)
        clear_files(self._layout)

    def _write(self) -> None:
        self._state.write(self._layout.state_file)

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        self._stop = True


def source_roots(settings: Settings) -> tuple[Path, ...]:
    """What requests to this stack may name files in: as set; else, on a Ray of its own, the home
    and the working directory of who started it, but neither the root of all nor what lies in the
    data directory, where the secrets are."""
    if settings.source_roots is not None:
        return settings.source_roots
    if settings.ray_address is not None:
        return ()
    places = {Path(os.path.realpath(place)) for place in (Path.home(), Path.cwd())}
    data = Path(os.path.realpath(settings.data_dir))
    return tuple(sorted(p for p in places if p != Path("/") and not p.is_relative_to(data)))


async def _claim_redis(redis_url: str, release: str | None) -> None:
    redis = connect(redis_url)
    try:
        await claim_redis(redis, release)
    finally:
        await redis.aclose()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def is_up(components: dict[str, ComponentState]) -> bool:
    """All parts are ready, and every served model is ready or known to have failed."""
    models = {n: c for n, c in components.items() if n.startswith("inference-")}
    parts = {n: c for n, c in components.items() if n not in models and n != "reconciler"}
    some_failed = any(model.state == "failed" for model in models.values())
    return (
        all(part.state == "ready" for part in parts.values())
        and all(model.state in {"ready", "failed"} for model in models.values())
        and (components["reconciler"].state == "ready" or some_failed)
    )


def take_lock(layout: Layout) -> IO[bytes]:
    """The data directory's lock, held until the file is closed; FailedPrecondition if taken."""
    make_private(layout.data_dir)
    lock = layout.lock_file.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise FailedPrecondition(
            f"a stack runs on {layout.data_dir} already: `plinth status` shows it, `plinth down` "
            "stops it, and --data with another folder starts a second one",
            reason="STACK_RUNNING",
        ) from error
    return lock


def clear_leftovers(layout: Layout) -> int:
    """Ends and removes what a killed supervisor left; returns the number of processes ended."""
    try:
        before = StackState.read(layout.state_file)
    except DataLoss:
        before = None  # the marker in their environment finds the processes without it
    sessions = before.sessions if before is not None else []
    ended = processes.end_stack(layout.stack_id, sessions, grace_s=2.0)
    clear_files(layout)
    layout.state_file.unlink(missing_ok=True)
    return ended


def clear_files(layout: Layout) -> None:
    """Temporary files of a stack that is not running."""
    shutil.rmtree(layout.ray_dir, ignore_errors=True)
    layout.stopping.unlink(missing_ok=True)
    (layout.data_dir / "redis" / "redis.sock").unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    settings = load_settings()
    configure_logging(settings, "supervisor")
    owner = Identity(int(arguments[1]), float(arguments[2])) if len(arguments) > 2 else None
    return Supervisor(settings, StackPlan.from_json(arguments[0]), owner).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
