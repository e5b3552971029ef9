"""The coordinator stage: runs as durable state machines, served models as desired state.

Every replica answers reads and takes requests; the one that leads (by lease) carries them out.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plinth.coordinator import metrics
from plinth.coordinator.artifact_service import ArtifactServicer
from plinth.coordinator.artifact_uses import ArtifactUses
from plinth.coordinator.collection_uses import CollectionUses
from plinth.coordinator.conductor import Conductor
from plinth.coordinator.deployment_service import DeploymentServicer
from plinth.coordinator.leader import LeaderLease
from plinth.coordinator.preferences.stage import Preferences
from plinth.coordinator.run_service import RunServicer
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.steps.contract import Tools
from plinth.coordinator.uploads import PIECE_BYTES, Uploads
from plinth.shared import redis_keys
from plinth.shared.api.paging import Pages
from plinth.shared.canary import Canaries
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import Internal
from plinth.shared.records import DeploymentRecords
from plinth.shared.rpc.server import GrpcService
from plinth.shared.source_roots import SourceRoots
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

if TYPE_CHECKING:
    from plinth.shared.stage import StageContext

_log = get_logger("plinth.coordinator")


def build(context: StageContext, **_options: Any) -> CoordinatorFront:
    return CoordinatorFront(context)


class CoordinatorFront:
    """The stage's replica."""

    stage = "coordinator"

    def __init__(self, context: StageContext) -> None:
        self._redis = context.redis
        self._records = RunRecords(context.redis)
        self._feed = ChangeFeed(context.redis, redis_keys.run_events())
        deployments = DeploymentRecords(context.store)
        self._tools = Tools(
            context.store,
            deployments,
            context.registry,
            context.clients,
            context.redis,
            Canaries(context.redis),
            SourceRoots.of(context.settings),
        )
        self._preferences = Preferences(
            context.redis,
            context.store,
            context.registry,
            context.clients,
            context.replica_id,
            context.token,
            CollectionUses(self._records).of,
        )
        # A piece passes through the gateway, whatever it takes at once.
        piece = min(PIECE_BYTES, context.settings.gateway.max_body_bytes)
        self._uploads = Uploads(context.store, piece_bytes=piece)
        self._pages = Pages(context.token)
        self._uses = ArtifactUses(context.store, deployments, self._records, context.clients)
        self._conductor = Conductor(self._records, self._feed, self._tools)
        self._lease = LeaderLease(
            context.redis,
            # A replica that was killed and started again must not take its old self's lease.
            f"{context.replica_id}.{secrets.token_hex(4)}",
            ttl_s=context.settings.coordinator.lease_s,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def services(self) -> Sequence[GrpcService]:
        return [
            RunServicer(self._records, self._feed, self._tools, self._pages).service(),
            DeploymentServicer(self._tools, self._pages).service(),
            ArtifactServicer(
                self._tools.store, self._uploads, self._pages, self._uses.of
            ).service(),
            self._preferences.service(),
        ]

    async def start(self) -> None:
        """Unavailable while Redis is gone."""
        await self._feed.open()
        self._tasks = [
            asyncio.create_task(self._feed.follow()),
            asyncio.create_task(self._lease.lead(self._conductor.conduct)),
            asyncio.create_task(metrics.keep_looking(self._redis)),
        ]
        self._preferences.start()

    async def check(self) -> None:
        """Internal when a background task died: the replica is to be replaced."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                raise Internal(f"a background task of the coordinator ended: {task.exception()!r}")
        metrics.LEADS.set(self._leads)
        self._preferences.check()

    def announcement(self) -> dict[str, str]:
        return {"leader": "1" if self._leads else "0"}

    @property
    def _leads(self) -> bool:
        leadership = self._lease.leadership
        return leadership is not None and leadership.held

    async def drain(self, grace_s: float) -> None:
        """Gives the lead back; jobs in flight go on, and the next leader takes them up."""
        ending = asyncio.create_task(self._end_tasks())
        if not (await asyncio.wait({ending}, timeout=grace_s))[0]:
            _log.warning("the coordinator's tasks did not end in time", grace_s=grace_s)

    async def _end_tasks(self) -> None:
        await self._preferences.stop()
        await cancel_and_wait(*self._tasks)
