"""One template for every stage replica: open what it needs, serve, announce, drain.

A stage gives a front; this module gives it a server, health, a place in the registry and an end
without loss. Knows neither what the front does nor who supervises the process.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from redis.asyncio import Redis

from plinth.shared import vital_signs
from plinth.shared.api.owners import calling_owner
from plinth.shared.connection import connect
from plinth.shared.errors import FailedPrecondition, PlinthError, Unavailable
from plinth.shared.identity import cluster_token, may_list_artifacts
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.schema import claim_redis
from plinth.shared.settings import Settings
from plinth.shared.store import ArtifactStore
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger, start_metrics_server
from plinth.shared.version import VERSION

_log = get_logger("plinth.stage")


class StageFront(Protocol):
    """What a stage brings. `<stage>/service.py: build(context, **options)` makes one."""

    stage: str

    def services(self) -> Sequence[GrpcService]:
        """Its gRPC services; asked once, before `start`."""
        ...

    async def start(self) -> None:
        """Loads and starts background work; returns when ready to serve."""
        ...

    async def check(self) -> None:
        """Raises PlinthError when unhealthy: not announced then, and not ready."""
        ...

    def announcement(self) -> dict[str, str]:
        """Registry fields beside the address (bindings, kv, running, waiting)."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Ends its work within `grace_s`: gives leases back, finishes or hands over streams."""
        ...


@dataclass
class StageContext:
    """What a replica works with; one per process."""

    settings: Settings
    token: str
    redis: Redis
    store: ArtifactStore
    registry: Registry
    clients: StageClients
    replica_id: str

    @classmethod
    async def open(
        cls, settings: Settings, *, stage: str, replica_id: str | None = None
    ) -> StageContext:
        """FailedPrecondition without a Redis, with one of a newer schema or of another
        release, or with a store that can't create exclusively."""
        if settings.redis_url is None:
            raise FailedPrecondition(
                "no Redis is set; `plinth up` starts one, or set PLINTH_REDIS_URL to yours",
                field="redis_url",
            )
        token = cluster_token(settings)
        cache_dir = settings.data_dir / "cache" / "artifacts"
        settings.ensure_data_dir()
        store = await asyncio.to_thread(
            ArtifactStore,
            settings.store(),
            cache_dir=cache_dir,
            may_list=may_list_artifacts,
            maker=calling_owner,
        )
        redis = connect(settings.redis_url.get_secret_value())
        try:
            await claim_redis(redis, settings.release)
        except BaseException:
            await redis.aclose()
            raise
        registry = Registry(redis)
        return cls(
            settings=settings,
            token=token,
            redis=redis,
            store=store,
            registry=registry,
            clients=StageClients(registry, settings, token),
            replica_id=replica_id or f"{stage}-{uuid.uuid4().hex[:12]}",
        )

    async def close(self) -> None:
        """Closes the channels and the connections to Redis."""
        await self.clients.close()
        await self.redis.aclose()


async def run_stage(context: StageContext, front: StageFront) -> RunningStage:
    """Serves `front`: server up (alive), front started, ready, announced. Then it beats by itself.

    Whatever `front.start` raises comes out, with the server stopped again.
    """
    settings = context.settings
    vital_signs.watch(settings)
    server = GrpcServer(
        front.services(),
        stage=front.stage,
        settings=settings,
        token=context.token,
        port=settings.stage_port,
        tls=settings.tls,
        health_port=settings.health_port,
    )
    port = await server.start()
    try:
        metrics = start_metrics_server(settings.metrics_port, settings.host)
        await front.start()
        host = settings.advertise_host or settings.host
        where = f"[{host}]" if ":" in host else host
        running = RunningStage(context, front, server, f"{where}:{port}", f"{where}:{metrics}")
        await running.begin()
    except BaseException:
        await server.stop(0)
        raise
    _log.info("stage ready", stage=front.stage, replica=context.replica_id, address=running.address)
    return running


class RunningStage:
    """A served front. `address` is what it is announced under, host:port."""

    def __init__(
        self,
        context: StageContext,
        front: StageFront,
        server: GrpcServer,
        address: str,
        metrics_address: str,
    ) -> None:
        self.address = address
        self.front = front
        self._context = context
        self._server = server
        self._metrics_address = metrics_address
        self._heartbeat: asyncio.Task[None] | None = None
        self._beats = 0
        self._healthy = True
        self._announced = True  # changes are logged, not each beat
        self._stopped = False

    async def begin(self) -> None:
        """Ready and announced; called once, by run_stage."""
        await self._beat()
        self._heartbeat = asyncio.create_task(self._beat_on(), name="plinth-heartbeat")

    async def check(self) -> None:
        """Raises PlinthError when the front is unhealthy or the heartbeat has ended."""
        if self._stopped:
            raise Unavailable(f"{self.front.stage} is stopping")
        if self._heartbeat is None or self._heartbeat.done():
            raise Unavailable(f"the heartbeat of {self.front.stage} has ended")
        await self.front.check()

    async def stop(self, grace_s: float) -> None:
        """Not ready, off the registry, then the front drains and the server ends its calls."""
        if self._stopped:
            return
        self._stopped = True
        until = time.monotonic() + grace_s
        await self._server.set_ready(False)
        if self._heartbeat is not None:
            await cancel_and_wait(self._heartbeat)
        try:
            await self._context.registry.withdraw(self.front.stage, self._context.replica_id)
        except PlinthError as error:
            _log.warning("not withdrawn; the announcement lapses", error=error.message)
        try:
            await self.front.drain(grace_s)
        finally:
            await self._server.stop(max(0.0, until - time.monotonic()))
            _log.info("stage stopped", stage=self.front.stage, replica=self._context.replica_id)

    async def _beat_on(self) -> None:
        period_s = self._context.registry.ttl_s / 3
        while True:
            await asyncio.sleep(period_s)
            await self._beat()

    async def _beat(self) -> None:
        """One beat: health as the front says, and the announcement only while it is well."""
        try:
            await self.front.check()
            self._beats += 1  # so that readers can tell a new word from the last one
            fields = {
                **self.front.announcement(),
                "metrics": self._metrics_address,
                "version": VERSION,
                "beat": str(self._beats),
            }
        except Exception as error:  # noqa: BLE001 - an unhealthy front must not end the heartbeat
            await self._set_healthy(False, error)
            return
        await self._set_healthy(True, None)
        try:
            await self._context.registry.announce(
                self.front.stage, self._context.replica_id, self.address, fields
            )
        except PlinthError as error:
            vital_signs.REDIS_REACHABLE.labels(self.front.stage).set(0)
            if self._announced:
                _log.warning("can't announce; goes on trying", error=error.message)
            self._announced = False
            return
        vital_signs.REDIS_REACHABLE.labels(self.front.stage).set(1)
        if not self._announced:
            _log.info("announced again", replica=self._context.replica_id)
        self._announced = True

    async def _set_healthy(self, healthy: bool, error: Exception | None) -> None:
        if error is not None and self._healthy:
            _log.error("stage unhealthy", stage=self.front.stage, exc_info=error)
        elif healthy and not self._healthy:
            _log.info("stage healthy again", stage=self.front.stage)
        self._healthy = healthy
        vital_signs.HEALTHY.labels(self.front.stage).set(healthy)
        await self._server.set_ready(healthy)
