"""The process that owns Ray: starts it, deploys the stages on Ray Serve, watches both.

Run by the supervisor: `python -m plinth.cluster.ray_head PLAN`. It tells what happens as JSON
lines on standard output ({"component", "state", "address", "detail"}). It ends with code 3 when
a part of Ray died: Ray is then restarted whole, by starting this process anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from types import FrameType
from typing import Any

from plinth.cluster import ray_local, reconciler
from plinth.cluster.layout import Layout, StackPlan, StageSpec
from plinth.cluster.serving import Applier, Served, states
from plinth.shared.connection import connect
from plinth.shared.errors import PlinthError, described
from plinth.shared.registry import Registry, Replica
from plinth.shared.settings import Settings, load_settings
from plinth.shared.telemetry import configure_logging, get_logger

RAY_DIED = 3
STARTING_POLL_S = 0.5
RUNNING_POLL_S = 6.0
WATCH_S = 0.5
# Serve's controller restarts within seconds; a status call that hangs longer means that GCS or
# raylet hang without having died.
STATUS_HANG_S = 90.0
SERVE_SHUTDOWN_S = 5.0


class Head:
    """Ray and Serve of one stack."""

    def __init__(self, settings: Settings, plan: StackPlan) -> None:
        self._settings = settings
        self._plan = plan
        self._log = get_logger("plinth.cluster.ray_head")
        self._stop = threading.Event()
        self._ray = None if settings.ray_address else ray_local.LocalRay(Layout.of(settings))
        self._told: dict[str, tuple[str, str]] = {}
        self._last_status = time.monotonic()

    def run(self) -> int:
        """Until told to stop (0) or Ray died (3)."""
        from ray import serve  # noqa: PLC0415

        self._on_signals()
        started = self._ray.start() if self._ray else ray_local.connect(self._settings)
        self._on_signals()  # Ray's driver brings handlers of its own
        self._tell("ray", "ready", address=started)
        self._last_status = time.monotonic()
        serve.start(proxy_location="Disabled")
        threading.Thread(target=self._follow_serve, daemon=True, name="serve-status").start()
        while not self._stop.wait(WATCH_S):
            dead = self._ray.dead() if self._ray else []
            hangs = time.monotonic() - self._last_status > STATUS_HANG_S
            if dead or hangs:
                self._log.error("ray died", parts=dead, hangs=hangs)
                self._tell("ray", "failed", detail=f"{', '.join(dead) or 'Serve'} died")
                return RAY_DIED
        self._shut_down()
        return 0

    def _specs(self) -> tuple[StageSpec, ...]:
        reconciling = StageSpec(
            "reconciler",
            "plinth.cluster.reconciler:build",
            options={"shard": json.loads(self._plan.to_json())["shard"]},
        )
        scaling = self._settings.scaling
        return tuple(
            replace(spec, load_over_s=scaling.over_s, down_after_s=scaling.down_after_s)
            for spec in (*self._plan.stages, reconciling)
        )

    def _follow_serve(self) -> None:
        """Deploys the stages and tells each application's changes, as long as we run."""
        specs, applier = self._specs(), Applier()
        while not self._stop.is_set():
            settled = False
            try:
                now = states()
                applier.apply(specs, now)
            except Exception as error:  # noqa: BLE001  (whatever Ray raises while Serve restarts)
                self._log.warning("serve does not answer", error=described(error))
            else:
                self._last_status = time.monotonic()
                settled = bool(now) and all(served.state == "ready" for served in now.values())
                for name in {spec.name for spec in specs} | set(now):
                    served = now.get(name, Served("starting"))
                    if self._told.get(name) != (served.state, served.detail):
                        where = self._where(name) if served.state == "ready" else ""
                        self._tell(name, served.state, address=where, detail=served.detail)
                for name in set(self._told) - set(now) - {spec.name for spec in specs} - {"ray"}:
                    self._tell(name, "stopping")
                    del self._told[name]
            self._stop.wait(RUNNING_POLL_S if settled else STARTING_POLL_S)

    def _where(self, name: str) -> str:
        """Addresses that the application's replicas announced; empty while Redis is away."""
        stage, _, model = name.partition("-")

        async def ask() -> list[Replica]:
            assert self._settings.redis_url is not None
            redis = connect(self._settings.redis_url.get_secret_value())
            try:
                return await Registry(redis).replicas(stage)
            finally:
                await redis.aclose()

        try:
            found = asyncio.run(ask())
        except PlinthError as error:
            self._log.warning("registry does not answer", error=error.message)
            return ""
        models = [{b.get("model") for b in replica.bindings} for replica in found]
        return ", ".join(
            replica.address
            for replica, held in zip(found, models, strict=True)
            if not model or model in held
        )

    def _tell(self, component: str, state: str, *, address: str = "", detail: str = "") -> None:
        if self._told.get(component) == (state, detail):
            return
        self._told[component] = (state, detail)
        line = {"component": component, "state": state, "address": address, "detail": detail}
        try:
            print(json.dumps(line), flush=True)
        except BrokenPipeError:
            # The supervisor was killed. Serving goes on until the next `up` or `down` clears it.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123

    def _on_signals(self) -> None:
        def stop(_: int, __: FrameType | None) -> None:
            self._stop.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)

    def _shut_down(self) -> None:
        """Serve drains its replicas, then Ray ends; a Serve that hangs ends with Ray."""
        from ray import serve  # noqa: PLC0415

        end = serve.shutdown if self._ray is not None else self._delete_ours
        draining = threading.Thread(target=end, daemon=True, name="serve-shutdown")
        draining.start()
        draining.join(SERVE_SHUTDOWN_S)
        if draining.is_alive():
            self._log.warning("serve did not stop in time", seconds=SERVE_SHUTDOWN_S)
        if self._ray is not None:
            self._ray.stop()

    def _delete_ours(self) -> None:
        """On somebody else's Ray: our applications go, the reconciler first, and nothing else."""
        from ray import serve  # noqa: PLC0415

        ours = {spec.name for spec in self._specs()}
        names = [n for n in states() if n in ours or n.startswith(reconciler.PREFIX)]
        for name in sorted(names, key=lambda n: n != "reconciler"):
            serve.delete(name, _blocking=False)
        while any(name in states() for name in names):
            time.sleep(STARTING_POLL_S)


def main(arguments: list[str]) -> int:
    settings = load_settings()
    configure_logging(settings, "ray")
    return Head(settings, StackPlan.from_json(arguments[0])).run()


def _exit(code: int) -> Any:
    # Ray's threads must not hold up the end of a process whose work is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main(sys.argv[1:]))
