"""The reward stage's front: scores over gRPC, and tasks from the queue, by one scorer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from plinth.reward.consumer import TaskConsumer
from plinth.reward.scorer import Scorer
from plinth.reward.verifiers import load_plugins
from plinth.shared.errors import Internal, Unavailable
from plinth.shared.load import Load, queue_load
from plinth.shared.rewards import announce, rewards_queue
from plinth.shared.rpc.handlers import Context
from plinth.shared.rpc.server import GrpcService
from plinth.shared.tasks import cancel_and_wait
from plinth.v1 import rewards_pb2 as pb
from plinth.v1 import rewards_pb2_grpc as rpc

if TYPE_CHECKING:
    from plinth.shared.stage import StageContext


def build(context: StageContext) -> RewardStage:
    """The stage's front over this context."""
    load_plugins()
    return RewardStage(context)


class RewardStage(rpc.RewardServiceServicer):
    """StageFront and servicer of `plinth.v1.RewardService`."""

    stage = "reward"

    def __init__(self, context: StageContext) -> None:
        settings = context.settings.reward
        self._settings = context.settings
        self._queue = rewards_queue(context.redis, lease_s=settings.lease_s)
        self._scorer = Scorer(context.store, context.clients, settings)
        self._consumer = TaskConsumer(
            context.replica_id,
            self._queue,
            self._scorer.score,
            lambda name, id: announce(context.redis, name, id),
            tasks=settings.tasks,
            lease_s=settings.lease_s,
        )
        self._consuming: asyncio.Task[None] | None = None
        self._calls = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    # -- StageFront ------------------------------------------------------------------------

    def services(self) -> Sequence[GrpcService]:
        def add(server: grpc.aio.Server) -> None:
            rpc.add_RewardServiceServicer_to_server(self, server)

        return [GrpcService("plinth.v1.RewardService", add)]

    async def start(self) -> None:
        """Begin to take tasks. Models are opened when they are asked for."""
        self._consuming = asyncio.create_task(self._consumer.run())

    async def check(self) -> None:
        """Unhealthy when nobody takes tasks any more."""
        task = self._consuming
        if task is not None and task.done() and not task.cancelled():
            raise Internal(f"the consumer of reward tasks ended: {task.exception()}")

    def announcement(self) -> dict[str, str]:
        running = self._calls + self._consumer.running
        return {"running": str(running), "waiting": str(self._scorer.waiting)}

    async def load(self) -> Load:
        """How late the queue of tasks is, or how many of this replica's places are taken."""
        ratio = await queue_load(
            self._queue,
            oldest_s=self._settings.scaling.rewards_oldest_s,
            running=self._consumer.running,
            slots=self._settings.reward.tasks,
        )
        return Load(ratio)

    async def drain(self, grace_s: float) -> None:
        """Finish what is in work; what does not end in time is given back to the queue."""
        self._draining = True
        self._consumer.drain()
        consuming, self._consuming = self._consuming, None
        ends: list[asyncio.Task[Any]] = [asyncio.create_task(self._idle.wait())]
        ends += [consuming] if consuming is not None else []
        await asyncio.wait(ends, timeout=grace_s)
        await cancel_and_wait(*ends)
        await self._scorer.close()

    # -- RewardService ---------------------------------------------------------------------

    async def ScoreRewards(
        self, request: pb.ScoreRewardsRequest, context: Context
    ) -> pb.ScoreRewardsResponse:
        with self._call():
            return await self._scorer.score(request)

    async def CheckSources(
        self, request: pb.CheckSourcesRequest, context: Context
    ) -> pb.CheckSourcesResponse:
        return pb.CheckSourcesResponse(models=await self._scorer.check(request.sources))

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Count a call, so that draining can wait for it."""
        if self._draining:
            raise Unavailable("this replica is draining; ask another", reason="DRAINING")
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()
