"""The coordinator's part that collects preferences: a service, and workers behind it."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from plinth.coordinator.preferences.checks import VALIDATORS
from plinth.coordinator.preferences.service import PreferenceServicer, Uses
from plinth.coordinator.preferences.work import PreferenceWorker
from plinth.shared.errors import Internal
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.server import GrpcService
from plinth.shared.store import ArtifactStore
from plinth.shared.tasks import cancel_and_wait
from plinth.v1 import preferences_pb2_grpc as rpc

WORKERS = 2


class Preferences:
    """One per replica of the coordinator."""

    def __init__(
        self,
        redis: Redis,
        store: ArtifactStore,
        registry: Registry,
        clients: StageClients,
        replica_id: str,
        token: str,
        uses: Uses,
    ) -> None:
        """token: the cluster's. uses: what reads a collection and has not ended."""
        self.servicer = PreferenceServicer(redis, store, registry, clients, token, uses)
        self._workers = [
            PreferenceWorker(f"{replica_id}.{number}", redis, registry, clients)
            for number in range(WORKERS)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def service(self) -> GrpcService:
        """For the replica's server."""
        return GrpcService(
            "plinth.v1.PreferenceService",
            lambda server: rpc.add_PreferenceServiceServicer_to_server(self.servicer, server),
            validators=VALIDATORS,
        )

    def start(self) -> None:
        """Takes up what waits."""
        self._tasks = [asyncio.create_task(worker.run()) for worker in self._workers]

    def check(self) -> None:
        """Internal when a worker died."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                raise Internal(f"a preference worker ended: {task.exception()!r}")

    async def stop(self) -> None:
        """Gives back what is in work."""
        await cancel_and_wait(*self._tasks)
