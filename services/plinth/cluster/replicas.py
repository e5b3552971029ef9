"""A stage replica: a Ray Serve deployment that opens its own gRPC server.

Ray Serve starts it, asks for its health, restarts it and tells it to stop; no request passes
through Serve. The stage itself (`StageFront`) knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from plinth.cluster import scaling
from plinth.cluster.layout import Layout, StageSpec
from plinth.shared import tracing
from plinth.shared.errors import FailedPrecondition, PlinthError
from plinth.shared.load import LOAD, ReportsLoad
from plinth.shared.private_folders import make_private
from plinth.shared.process_memory import freeze_what_lives
from plinth.shared.settings import Settings, load_settings
from plinth.shared.stage import RunningStage, StageContext, StageFront, run_stage
from plinth.shared.telemetry import configure_logging, get_logger

HEALTH_PERIOD_S = 2.0
# Above the longest time a busy, healthy stage may take to answer: with 10 s, an engine in a long
# step was taken for dead.
HEALTH_TIMEOUT_S = 40.0
STOP_DRAIN_S = 1.0  # when the whole stack goes down
SHUTDOWN_SLACK_S = 10.0  # Serve kills so long after a drain should have ended
LOG_LIMIT_BYTES = 16 << 20
POLICY = "plinth.cluster.scaling:Policy"


def application(spec: StageSpec) -> Any:
    """The Serve application of one stage: `serve.run(application(spec), name=spec.name)`.

    Its version is the digest of `spec`, so that applying the same spec again changes nothing.
    """
    from ray import serve  # noqa: PLC0415

    deployment = serve.deployment(StageReplica).options(
        name=spec.name,
        # Serve makes a random version otherwise and would restart the replicas at each apply.
        version=spec.digest(),
        _internal=True,
        autoscaling_config=autoscaling(spec),
        ray_actor_options={
            "num_cpus": spec.cpus,
            "num_gpus": spec.gpus,
            "resources": dict(spec.resources),
        },
        max_ongoing_requests=1,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=shutdown_timeout_s(spec),
        max_constructor_retry_count=3,
        max_surge_percent=spec.surge_percent,  # a successor is ready before its predecessor stops
    )
    return deployment.bind(asdict(spec))


def autoscaling(spec: StageSpec) -> dict[str, Any]:
    """Between how many replicas Serve chooses, and by what.

    A fixed number has equal bounds: a replica tells its load from its start or never (Ray 2.60), so
    that raising the upper one later would otherwise want new replicas.
    """
    least, most, over_s, down_after_s = spec.numbers()
    return {
        "min_replicas": least,
        "max_replicas": most,
        "look_back_period_s": over_s,
        # The policy itself waits as long as it must.
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "target_ongoing_requests": 1.0,  # of Serve's own requests, of which there are none
        "policy": {
            "policy_function": POLICY,
            "policy_kwargs": {"over_s": over_s, "down_after_s": down_after_s},
        },
    }


def shutdown_timeout_s(spec: StageSpec) -> float:
    """When Serve kills a replica that it has told to stop."""
    return spec.drain_s + SHUTDOWN_SLACK_S


class StageReplica:
    """What Serve holds of a stage. `raw_spec` is a StageSpec as a plain dictionary."""

    # Serve awaits the constructor of a deployment.
    async def __init__(self, raw_spec: dict[str, Any]) -> None:  # type: ignore[misc]
        keep_serve_on_loopback()
        spec = StageSpec(**raw_spec)
        settings = load_settings()
        if settings.log_to == "file":
            write_to_log(settings, spec.name)
        configure_logging(settings, spec.name)
        tracing.start(settings, spec.stage or spec.name)
        self._settings = settings
        self._drain_s = spec.drain_s
        self._log = get_logger("plinth.cluster.replicas")
        self._context: StageContext | None = None
        self._running: RunningStage | None = None
        try:
            await self._open(spec)
        except Exception:
            # Serve shows only the end of it; the whole story belongs in the component's log.
            self._log.exception("replica did not start", stage=spec.name)
            await self._close(0.0)
            raise

    async def _open(self, spec: StageSpec) -> None:
        build = load_factory(spec.factory)
        freeze_what_lives()  # before there are weights, which are to be freed once replaced
        self._context = await StageContext.open(self._settings, stage=spec.stage or spec.name)
        front = build(self._context, **spec.options)
        self._running = await run_stage(self._context, front)
        # The reconciler counts as running only when the models are served.
        settled = getattr(front, "settled", None)
        if settled is not None:
            await settled()

    async def check_health(self) -> None:
        """Raises when Serve should replace this replica."""
        if self._running is None:
            raise FailedPrecondition("the replica has not started")
        await self._running.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks every few seconds, for `scaling.Policy`. Nothing: it can't be told now."""
        if self._running is None or not isinstance(self._running.front, ReportsLoad):
            return {}
        try:
            load = await self._running.front.load()
        except PlinthError as error:
            self._log.warning("load is not known", error=error.message)
            return {}
        LOAD.labels(self._running.front.stage).set(load.ratio)
        return {scaling.LOAD: load.ratio, scaling.HELD: float(load.held)}

    async def __del__(self) -> None:
        """Serve awaits this before it ends the process."""
        stopping = Layout.of(self._settings).stopping.exists()
        await self._close(STOP_DRAIN_S if stopping else self._drain_s)

    async def _close(self, grace_s: float) -> None:
        running, self._running = self._running, None
        context, self._context = self._context, None
        if running is not None:
            await running.stop(grace_s)
        if context is not None:
            await context.close()
        await asyncio.to_thread(tracing.stop)


def load_factory(path: str) -> Callable[..., StageFront]:
    """The function that "module:function" names."""
    module, _, name = path.partition(":")
    factory: Callable[..., StageFront] = getattr(importlib.import_module(module), name)
    return factory


def keep_serve_on_loopback() -> None:
    """Serve opens a gRPC server per replica for calls between deployments, on all addresses.

    There is no setting for it; the server binds after the replica's constructor has run, so the
    constructor can still choose the address.
    """
    from ray.serve._private import replica  # noqa: PLC0415

    if getattr(replica.add_port_to_grpc_server, "_plinth", False):
        return
    original = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        bound: int = original(server, address.replace("[::]", "127.0.0.1"))
        return bound

    on_loopback._plinth = True  # type: ignore[attr-defined]
    replica.add_port_to_grpc_server = on_loopback


def write_to_log(settings: Settings, component: str) -> None:
    """Sends this process's output to <data>/logs/<component>.log: Ray's folder goes at a stop."""
    path = Layout.of(settings).log(component)
    make_private(path.parent)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
