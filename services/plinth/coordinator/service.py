"""The coordinator stage: runs as durable state machines, served models as desired state.

Every replica answers reads and takes requests; the one that leads (by lease) carries them out.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from plinth.coordinator import machine, metrics, resubmission
from plinth.coordinator.conductor import Conductor
from plinth.coordinator.deployments import ready_shards
from plinth.coordinator.fork import fork
from plinth.coordinator.leader import LeaderLease
from plinth.coordinator.machine import Wanted
from plinth.coordinator.pipeline import check_paths, parse, pinned
from plinth.coordinator.preferences.stage import Preferences
from plinth.coordinator.run_watch import next_revision, watch_position, watch_run
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.steps.contract import Tools
from plinth.shared import redis_keys
from plinth.shared.canary import Canaries, answer_key
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import Internal, InvalidArgument
from plinth.shared.identity import current_principal
from plinth.shared.manifest import check_name
from plinth.shared.records import DeploymentRecords
from plinth.shared.rpc.server import GrpcService
from plinth.shared.source_roots import SourceRoots
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger
from plinth.v1 import coordinator_pb2 as pb
from plinth.v1 import coordinator_pb2_grpc as rpc

if TYPE_CHECKING:
    from plinth.shared.stage import StageContext

_log = get_logger("plinth.coordinator")
_RUN_ID_CHARS = 40
# How long pause, resume and cancel wait to show their effect; it comes anyway.
_EFFECT_S = 3.0


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
            context.redis, context.store, context.registry, context.clients, context.replica_id
        )
        self._conductor = Conductor(self._records, self._feed, self._tools)
        self._lease = LeaderLease(
            context.redis,
            # A replica that was killed and started again must not take its old self's lease.
            f"{context.replica_id}.{secrets.token_hex(4)}",
            ttl_s=context.settings.coordinator.lease_s,
        )
        self._tasks: list[asyncio.Task[None]] = []

    def services(self) -> Sequence[GrpcService]:
        servicer = Servicer(self._records, self._feed, self._tools)
        scopes = {"*": "runs"}
        for method in ("PutDeployment", "ListDeployments", "DeleteDeployment"):
            scopes[method] = "deployments"
        for method in ("ListArtifacts", "GetArtifact"):
            scopes[method] = "artifacts"
        scopes["ReportOutcome"] = "inference"  # who may ask may judge the answer
        return [
            GrpcService(
                "plinth.v1.CoordinatorService",
                lambda server: rpc.add_CoordinatorServiceServicer_to_server(servicer, server),
                scopes,
            ),
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


class Servicer(rpc.CoordinatorServiceServicer):
    """The RPCs; see coordinator.proto."""

    def __init__(self, records: RunRecords, feed: ChangeFeed, tools: Tools) -> None:
        self._records = records
        self._feed = feed
        self._tools = tools

    async def SubmitRun(self, request: pb.SubmitRunRequest, context: Any) -> pb.SubmitRunResponse:
        run_id = _checked_id(request.run_id)
        pipeline = await asyncio.to_thread(parse, request.pipeline_yaml, dict(request.overrides))
        asked = resubmission.of_pipeline(pipeline)
        if (there := await self._records.find(run_id)) is not None:
            return pb.SubmitRunResponse(run=resubmission.same(there, asked, pipeline))
        await asyncio.to_thread(check_paths, pipeline, self._tools.roots)
        pipeline = await asyncio.to_thread(pinned, pipeline, self._tools.store)
        run = machine.new_run(run_id, pipeline, time.time_ns() // 1_000_000)
        run.request_digest = asked
        stands = await self._records.submit(run)
        return pb.SubmitRunResponse(run=resubmission.same(stands, asked, pipeline))

    async def ForkRun(self, request: pb.ForkRunRequest, context: Any) -> pb.ForkRunResponse:
        run_id = _checked_id(request.run_id)
        overrides = dict(request.overrides)
        asked = resubmission.of_fork(request.source_run_id, request.from_step, overrides)
        if (there := await self._records.find(run_id)) is not None:
            return pb.ForkRunResponse(run=resubmission.same(there, asked))
        source = await self._records.get(request.source_run_id)
        run = await asyncio.to_thread(
            fork,
            source,
            run_id=run_id,
            from_step=request.from_step,
            overrides=overrides,
            store=self._tools.store,
            roots=self._tools.roots,
            now=time.time_ns() // 1_000_000,
        )
        run.request_digest = asked
        stands = await self._records.submit(run)
        return pb.ForkRunResponse(run=resubmission.same(stands, asked))

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=await self._records.get(request.run_id))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        runs = await self._records.newest(min(request.limit or 50, 200))
        for run in runs:  # many long files would not fit one message; GetRun gives each
            run.pipeline_yaml = ""
        return pb.ListRunsResponse(runs=runs)

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: Any
    ) -> AsyncIterator[pb.WatchRunResponse]:
        last = watch_position(request.resume_token)
        await self._records.get(request.run_id)
        await context.send_initial_metadata(())  # the caller knows now that somebody answers
        async with aclosing(watch_run(self._records, self._feed, request.run_id, last)) as runs:
            async for position, run in runs:
                yield pb.WatchRunResponse(run=run, resume_token=position)

    async def PauseRun(self, request: pb.PauseRunRequest, context: Any) -> pb.PauseRunResponse:
        paused = {pb.RUN_STATE_PAUSED}
        run = await self._want(request.run_id, Wanted.PAUSE, lambda run: run.state in paused)
        return pb.PauseRunResponse(run=run)

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        running = {pb.RUN_STATE_RUNNING}
        run = await self._want(request.run_id, Wanted.RUN, lambda run: run.state in running)
        return pb.ResumeRunResponse(run=run)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:
        run = await self._want(request.run_id, Wanted.CANCEL, machine.ended)
        return pb.CancelRunResponse(run=run)

    async def _want(
        self, run_id: str, wanted: Wanted, effective: Callable[[pb.Run], bool]
    ) -> pb.Run:
        """Records the wish, and waits a moment for the leader to follow it."""
        await self._records.want(run_id, wanted)
        run = await self._records.get(run_id)
        deadline = time.monotonic() + _EFFECT_S
        while not effective(run) and not machine.ended(run) and time.monotonic() < deadline:
            later = next_revision(self._records, self._feed, run)
            run = await _within(later, deadline - time.monotonic()) or run
        return run

    async def PutDeployment(
        self, request: pb.PutDeploymentRequest, context: Any
    ) -> pb.PutDeploymentResponse:
        if request.deployment.canary_of:
            raise InvalidArgument(
                "a pipeline step of kind canary makes canaries: it watches them and takes them "
                "down; this call is for served models",
                field="deployment.canary_of",
            )
        record = await asyncio.to_thread(self._tools.deployments.put, request.deployment)
        assert record.deployment is not None
        return pb.PutDeploymentResponse(deployment=await self._counted(record.deployment))

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Any
    ) -> pb.ListDeploymentsResponse:
        wanted = await asyncio.to_thread(self._tools.deployments.list)
        return pb.ListDeploymentsResponse(deployments=[await self._counted(d) for d in wanted])

    async def DeleteDeployment(
        self, request: pb.DeleteDeploymentRequest, context: Any
    ) -> pb.DeleteDeploymentResponse:
        await asyncio.to_thread(self._tools.deployments.delete, request.name)
        return pb.DeleteDeploymentResponse()

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        name = check_name(request.name, "name")
        if bool(request.request_id) == bool(request.revision):
            raise InvalidArgument("give one of request_id and revision", field="request_id")
        principal = current_principal()
        canaries = self._tools.canaries
        if request.revision:
            principal.require("runs")
            role = await canaries.report_revision(name, request.revision, good=request.good)
        else:
            answer = answer_key(principal.tenant, request.request_id)
            role = await canaries.report(name, answer=answer, good=request.good)
        return pb.ReportOutcomeResponse(role=role)

    async def _counted(self, deployment: pb.Deployment) -> pb.Deployment:
        counted = pb.Deployment()
        counted.CopyFrom(deployment)
        counted.ready_shards = await ready_shards(
            self._tools.registry, deployment.name, deployment.artifact
        )
        return counted

    async def ListArtifacts(
        self, request: pb.ListArtifactsRequest, context: Any
    ) -> pb.ListArtifactsResponse:
        store = self._tools.store
        records = await asyncio.to_thread(store.list, request.kind or None)
        records.sort(key=lambda record: record.created_unix_ms, reverse=True)
        artifacts = [record.to_proto() for record in records[: min(request.limit or 100, 1000)]]
        for artifact in artifacts:
            artifact.manifest_json = ""  # GetArtifact gives each
        return pb.ListArtifactsResponse(artifacts=artifacts)

    async def GetArtifact(
        self, request: pb.GetArtifactRequest, context: Any
    ) -> pb.GetArtifactResponse:
        store = self._tools.store
        record = await asyncio.to_thread(store.get, request.reference)
        aliases = await asyncio.to_thread(store.aliases, record.name)
        mine = [alias for alias, version in aliases.items() if version == record.version]
        return pb.GetArtifactResponse(artifact=record.to_proto(mine))


def _checked_id(run_id: str) -> str:
    """A new run's id; InvalidArgument says what one looks like."""
    redis_keys.check_part(run_id, "run_id")
    if len(run_id) > _RUN_ID_CHARS or "/" in run_id:
        raise InvalidArgument(
            f"run_id has at most {_RUN_ID_CHARS} characters and no '/'", field="run_id"
        )
    return run_id


async def _within(waited: Awaitable[pb.Run], seconds: float) -> pb.Run | None:
    try:
        return await asyncio.wait_for(waited, seconds)
    except TimeoutError:
        return None
