"""RunService: runs of pipelines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from plinth.coordinator import machine, resubmission
from plinth.coordinator.fork import fork
from plinth.coordinator.machine import Wanted
from plinth.coordinator.pipeline import STORED_BYTES, check_paths, parse, pinned
from plinth.coordinator.rights import check_rights
from plinth.coordinator.run_messages import RUN_FILTERS, RUNS, run_message
from plinth.coordinator.run_watch import next_revision, watch_position, watch_run
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.steps.contract import Tools
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.api.listing import Damaged, page_of
from plinth.shared.api.owners import check_owner, owner_of
from plinth.shared.api.paging import Pages
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.identity import current_principal
from plinth.shared.rpc.heartbeats import with_heartbeats
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import runs_pb2 as pb
from plinth.v1 import runs_pb2_grpc

_RUN_ID_CHARS = 40
# How long pause, resume and cancel wait to show their effect; it comes anyway.
_EFFECT_S = 3.0


class RunServicer(runs_pb2_grpc.RunServiceServicer):
    """The RPCs; see runs.proto."""

    def __init__(self, records: RunRecords, feed: ChangeFeed, tools: Tools, pages: Pages) -> None:
        self._records = records
        self._feed = feed
        self._tools = tools
        self._pages = pages

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.RunService",
            lambda server: runs_pb2_grpc.add_RunServiceServicer_to_server(self, server),
        )

    async def CreateRun(self, request: pb.CreateRunRequest, context: Any) -> pb.CreateRunResponse:
        run_id, asked_for = _checked_id(request.run_id), _checked_run(request.run)
        pipeline = await asyncio.to_thread(
            parse, asked_for.pipeline_yaml, dict(asked_for.overrides)
        )
        asked = resubmission.of_pipeline(pipeline)
        if (there := await self._records.find(run_id)) is not None:
            known = await asyncio.to_thread(resubmission.same, there, asked, pipeline)
            return pb.CreateRunResponse(run=run_message(known))
        await asyncio.to_thread(check_paths, pipeline, self._tools.roots)
        pipeline = await asyncio.to_thread(pinned, pipeline, self._tools.store)
        await asyncio.to_thread(check_rights, pipeline, self._tools, current_principal())
        run = machine.new_run(run_id, pipeline, time.time_ns() // 1_000_000)
        stands = await self._submit(run, asked)
        known = await asyncio.to_thread(resubmission.same, stands, asked, pipeline)
        return pb.CreateRunResponse(run=run_message(known))

    async def ForkRun(self, request: pb.ForkRunRequest, context: Any) -> pb.ForkRunResponse:
        run_id, source_id = _checked_id(request.run_id), RUNS.id(request.name)
        overrides = dict(request.overrides)
        asked = resubmission.of_fork(source_id, request.from_step, overrides)
        if (there := await self._records.find(run_id)) is not None:
            return pb.ForkRunResponse(run=run_message(resubmission.same(there, asked)))
        source = await self._records.get(source_id)
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
        forked = await asyncio.to_thread(parse, run.pipeline_yaml, most=STORED_BYTES)
        await asyncio.to_thread(check_rights, forked, self._tools, current_principal())
        stands = await self._submit(run, asked)
        return pb.ForkRunResponse(run=run_message(resubmission.same(stands, asked)))

    async def _submit(self, run: rec.RunRecord, asked: str) -> rec.RunRecord:
        run.request_digest = asked
        principal = current_principal()
        run.owner.CopyFrom(owner_of(principal))
        run.by_admin = "admin" in principal.scopes
        return await self._records.submit(run)

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=run_message(await self._records.get(RUNS.id(request.name))))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        wanted = RUN_FILTERS.parse(request.filter)

        async def read(position: str, count: int) -> Sequence[tuple[str, pb.Run | Damaged | None]]:
            found = await self._records.newest(position, count)
            return [(at, _listed(one)) for at, one in found]

        page = await page_of(self._pages, request, read, wanted)
        return pb.ListRunsResponse(
            runs=page.found, next_page_token=page.token, unreachable=page.unreachable
        )

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: Any) -> pb.DeleteRunResponse:
        run_id = RUNS.id(request.name)
        try:
            await self._owned(run_id)
            await self._records.delete(run_id)
        except NotFound:
            if not request.allow_missing:
                raise
        return pb.DeleteRunResponse()

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: Any
    ) -> AsyncIterator[pb.WatchRunResponse]:
        last, run_id = watch_position(request.resume_token), RUNS.id(request.name)
        await self._records.get(run_id)
        await context.send_initial_metadata(())  # the caller knows now that somebody answers
        changes = watch_run(self._records, self._feed, run_id, last)
        async with aclosing(with_heartbeats(changes, request.resume_token)) as told:
            async for position, run in told:
                yield pb.WatchRunResponse(run=run and run_message(run), resume_token=position)

    async def PauseRun(self, request: pb.PauseRunRequest, context: Any) -> pb.PauseRunResponse:
        paused = {pb.RUN_STATE_PAUSED}
        run = await self._want(request.name, Wanted.PAUSE, lambda run: run.state in paused)
        return pb.PauseRunResponse(run=run)

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        running = {pb.RUN_STATE_RUNNING}
        run = await self._want(request.name, Wanted.RUN, lambda run: run.state in running)
        return pb.ResumeRunResponse(run=run)

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:
        run = await self._want(request.name, Wanted.CANCEL, machine.ended)
        return pb.CancelRunResponse(run=run)

    async def _want(
        self, name: str, wanted: Wanted, effective: Callable[[rec.RunRecord], bool]
    ) -> pb.Run:
        """Records the wish, and waits a moment for the leader to follow it."""
        run_id = RUNS.id(name)
        await self._owned(run_id)
        await self._records.want(run_id, wanted)
        run = await self._records.get(run_id)
        deadline = time.monotonic() + _EFFECT_S
        while not effective(run) and not machine.ended(run) and time.monotonic() < deadline:
            later = next_revision(self._records, self._feed, run)
            run = await _within(later, deadline - time.monotonic()) or run
        return run_message(run)

    async def _owned(self, run_id: str) -> None:
        """NotFound; PermissionDenied for a run that the caller may not change."""
        run = await self._records.get(run_id)
        check_owner(run.owner, current_principal(), RUNS.name(run_id))


def _listed(one: rec.RunRecord | Damaged | None) -> pb.Run | Damaged | None:
    return run_message(one, pipeline=False) if isinstance(one, rec.RunRecord) else one


def _checked_id(run_id: str) -> str:
    """A new run's id; InvalidArgument says what one looks like."""
    redis_keys.check_part(run_id, "run_id")
    if len(run_id) > _RUN_ID_CHARS or "/" in run_id or "@" in run_id:
        raise InvalidArgument(
            f"run_id has at most {_RUN_ID_CHARS} characters and neither / nor @", field="run_id"
        )
    return run_id


def _checked_run(run: pb.Run) -> pb.RunSpec:
    """What is asked for. InvalidArgument where the platform's fields are set."""
    for field, _ in run.ListFields():
        if field.name != "spec":
            raise InvalidArgument(
                f"run.{field.name} is set by the platform; give run.spec alone, and run_id",
                field=f"run.{field.name}",
            )
    return run.spec


async def _within(waited: Awaitable[rec.RunRecord], seconds: float) -> rec.RunRecord | None:
    try:
        return await asyncio.wait_for(waited, seconds)
    except TimeoutError:
        return None
