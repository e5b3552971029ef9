"""RunService: runs of pipelines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from plinth.coordinator import machine, resubmission
from plinth.coordinator.fork import fork
from plinth.coordinator.machine import Wanted
from plinth.coordinator.pipeline import check_paths, parse, pinned
from plinth.coordinator.run_watch import next_revision, watch_position, watch_run
from plinth.coordinator.runs import RunRecords
from plinth.coordinator.steps.contract import Tools
from plinth.shared import redis_keys
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import InvalidArgument
from plinth.shared.rpc.server import GrpcService
from plinth.v1 import runs_pb2, runs_pb2_grpc

_RUN_ID_CHARS = 40
# How long pause, resume and cancel wait to show their effect; it comes anyway.
_EFFECT_S = 3.0


class RunServicer(runs_pb2_grpc.RunServiceServicer):
    """The RPCs; see runs.proto."""

    def __init__(self, records: RunRecords, feed: ChangeFeed, tools: Tools) -> None:
        self._records = records
        self._feed = feed
        self._tools = tools

    def service(self) -> GrpcService:
        return GrpcService(
            "plinth.v1.RunService",
            lambda server: runs_pb2_grpc.add_RunServiceServicer_to_server(self, server),
        )

    async def SubmitRun(
        self, request: runs_pb2.SubmitRunRequest, context: Any
    ) -> runs_pb2.SubmitRunResponse:
        run_id = _checked_id(request.run_id)
        pipeline = await asyncio.to_thread(parse, request.pipeline_yaml, dict(request.overrides))
        asked = resubmission.of_pipeline(pipeline)
        if (there := await self._records.find(run_id)) is not None:
            return runs_pb2.SubmitRunResponse(run=resubmission.same(there, asked, pipeline))
        await asyncio.to_thread(check_paths, pipeline, self._tools.roots)
        pipeline = await asyncio.to_thread(pinned, pipeline, self._tools.store)
        run = machine.new_run(run_id, pipeline, time.time_ns() // 1_000_000)
        run.request_digest = asked
        stands = await self._records.submit(run)
        return runs_pb2.SubmitRunResponse(run=resubmission.same(stands, asked, pipeline))

    async def ForkRun(
        self, request: runs_pb2.ForkRunRequest, context: Any
    ) -> runs_pb2.ForkRunResponse:
        run_id = _checked_id(request.run_id)
        overrides = dict(request.overrides)
        asked = resubmission.of_fork(request.source_run_id, request.from_step, overrides)
        if (there := await self._records.find(run_id)) is not None:
            return runs_pb2.ForkRunResponse(run=resubmission.same(there, asked))
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
        return runs_pb2.ForkRunResponse(run=resubmission.same(stands, asked))

    async def GetRun(
        self, request: runs_pb2.GetRunRequest, context: Any
    ) -> runs_pb2.GetRunResponse:
        return runs_pb2.GetRunResponse(run=await self._records.get(request.run_id))

    async def ListRuns(
        self, request: runs_pb2.ListRunsRequest, context: Any
    ) -> runs_pb2.ListRunsResponse:
        runs = await self._records.newest(min(request.limit or 50, 200))
        for run in runs:  # many long files would not fit one message; GetRun gives each
            run.pipeline_yaml = ""
        return runs_pb2.ListRunsResponse(runs=runs)

    async def WatchRun(
        self, request: runs_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[runs_pb2.WatchRunResponse]:
        last = watch_position(request.resume_token)
        await self._records.get(request.run_id)
        await context.send_initial_metadata(())  # the caller knows now that somebody answers
        async with aclosing(watch_run(self._records, self._feed, request.run_id, last)) as runs:
            async for position, run in runs:
                yield runs_pb2.WatchRunResponse(run=run, resume_token=position)

    async def PauseRun(
        self, request: runs_pb2.PauseRunRequest, context: Any
    ) -> runs_pb2.PauseRunResponse:
        paused = {runs_pb2.RUN_STATE_PAUSED}
        run = await self._want(request.run_id, Wanted.PAUSE, lambda run: run.state in paused)
        return runs_pb2.PauseRunResponse(run=run)

    async def ResumeRun(
        self, request: runs_pb2.ResumeRunRequest, context: Any
    ) -> runs_pb2.ResumeRunResponse:
        running = {runs_pb2.RUN_STATE_RUNNING}
        run = await self._want(request.run_id, Wanted.RUN, lambda run: run.state in running)
        return runs_pb2.ResumeRunResponse(run=run)

    async def CancelRun(
        self, request: runs_pb2.CancelRunRequest, context: Any
    ) -> runs_pb2.CancelRunResponse:
        run = await self._want(request.run_id, Wanted.CANCEL, machine.ended)
        return runs_pb2.CancelRunResponse(run=run)

    async def _want(
        self, run_id: str, wanted: Wanted, effective: Callable[[runs_pb2.Run], bool]
    ) -> runs_pb2.Run:
        """Records the wish, and waits a moment for the leader to follow it."""
        await self._records.want(run_id, wanted)
        run = await self._records.get(run_id)
        deadline = time.monotonic() + _EFFECT_S
        while not effective(run) and not machine.ended(run) and time.monotonic() < deadline:
            later = next_revision(self._records, self._feed, run)
            run = await _within(later, deadline - time.monotonic()) or run
        return run


def _checked_id(run_id: str) -> str:
    """A new run's id; InvalidArgument says what one looks like."""
    redis_keys.check_part(run_id, "run_id")
    if len(run_id) > _RUN_ID_CHARS or "/" in run_id:
        raise InvalidArgument(
            f"run_id has at most {_RUN_ID_CHARS} characters and no '/'", field="run_id"
        )
    return run_id


async def _within(waited: Awaitable[runs_pb2.Run], seconds: float) -> runs_pb2.Run | None:
    try:
        return await asyncio.wait_for(waited, seconds)
    except TimeoutError:
        return None
