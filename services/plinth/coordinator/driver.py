"""Takes one run to its end: the only writer of its record while this coordinator leads.

One loop: what is wanted, what may start, what came in, save. A step is recorded as running (with
its digest and job id) before anything of it happens in the world, and as done after its result
is on the store; so whoever takes over after a kill at any moment finds steps in flight by their
records and takes them up again under the same ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from plinth.coordinator import machine, metrics
from plinth.coordinator.leader import Leadership
from plinth.coordinator.machine import Wanted
from plinth.coordinator.performer import Performer, waits_for
from plinth.coordinator.pipeline import STORED_BYTES, Pipeline, input_digest, parse
from plinth.coordinator.runs import RunRecords, number_of, principal_of
from plinth.coordinator.steps import STEP_KINDS
from plinth.coordinator.steps.contract import Progress, StepOutcome, Work
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared import tracing
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import (
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PlinthError,
    Unavailable,
)
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactStore
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger
from plinth.v1 import runs_pb2 as pb

_log = get_logger("plinth.coordinator")
# Progress is saved at most this often.
_GATHER_S = 0.25
_AGAIN_S = 1.0  # a step whose inputs can't be had now
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _News:
    """Something came from a step; a step of None: look at what is wanted."""

    step: str | None
    event: Progress | StepOutcome | PlinthError | None = None


class RunDriver:
    """Drives one run under one leadership. `drive` returns when the run has ended."""

    def __init__(
        self,
        run_id: str,
        *,
        records: RunRecords,
        feed: ChangeFeed,
        store: ArtifactStore,
        roots: SourceRoots,
        performer: Performer,
        leadership: Leadership,
    ) -> None:
        self._run_id = run_id
        self._records = records
        self._feed = feed
        self._store = store
        self._roots = roots
        self._performer = performer
        self._leadership = leadership
        self._news: asyncio.Queue[_News] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._resolving: dict[str, asyncio.Task[Work | PlinthError]] = {}
        self._works: dict[str, Work] = {}

    async def drive(self) -> None:
        """Aborted when the lead is lost. Cancelling it leaves the steps' work in the world."""
        run, wanted = await self._records.load(self._run_id)
        if machine.ended(run):
            return
        try:
            # In a thread: a long text takes a second, and leases are to be renewed.
            pipeline = await asyncio.to_thread(parse, run.pipeline_yaml, most=STORED_BYTES)
        except InvalidArgument as error:
            machine.refuse(run, error=error.message, now=_now())
            await self._save(run)
            return
        watcher = asyncio.create_task(self._watch())
        try:
            await self._loop(run, pipeline, wanted)
        finally:
            await cancel_and_wait(watcher, *self._tasks.values(), *self._resolving.values())

    async def _loop(self, run: rec.RunRecord, pipeline: Pipeline, wanted: Wanted) -> None:
        saved = rec.RunRecord()
        saved.CopyFrom(run)
        while True:
            # 1. Stop, or start what may start (first of all what was in flight when a leader died).
            if machine.stopping(run, wanted):
                await self._stop(run, pipeline)
            for name in machine.in_flight(run):
                if name not in self._tasks:
                    self._start(run, pipeline, name)
            startable = machine.startable(run, pipeline, wanted)
            self._forget({*machine.in_flight(run), *startable})
            begun = [self._begin(run, pipeline, name) for name in startable]
            # 2. Save, if anything changed; only then do new steps touch the world.
            machine.settle(run, wanted, _now())
            if run != saved:
                await self._save(run)
                saved.CopyFrom(run)
            if machine.ended(run):
                state = pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
                metrics.RUNS_ENDED.labels(state).inc()
                _log.info("run ended", run_id=run.run_id, state=state)
                return
            if any(begun) or machine.stopping(run, wanted):
                continue
            # 3. Take in what came.
            await self._take_news(run)
            wanted = await self._wanted(wanted)

    def _begin(self, run: rec.RunRecord, pipeline: Pipeline, name: str) -> bool:
        """Fixes the step's digest and marks it running, once its work is known."""
        work = self._work(run, pipeline, name)
        if work is None:
            return False
        now = _now()
        machine.begin(run, name, input_digest=work.input_digest, job_id=work.job_id, now=now)
        return True

    def _start(self, run: rec.RunRecord, pipeline: Pipeline, name: str) -> None:
        """Lets a step that is recorded as running do its work, once that is known."""
        work = self._work(run, pipeline, name)
        if work is not None:
            self._tasks[name] = self._heard(self._perform(work))

    def _work(self, run: rec.RunRecord, pipeline: Pipeline, name: str) -> Work | None:
        """The step's work; None when it isn't known yet (then news comes), or never will be: then
        the step has failed."""
        if name in self._works:
            return self._works[name]
        if name not in self._resolving:
            self._resolving[name] = self._heard(self._resolve(run, pipeline, name))
        if not self._resolving[name].done():
            return None
        found = self._resolving.pop(name).result()
        if isinstance(found, PlinthError):
            machine.fail(run, name, error=found.message, now=_now())
            return None
        self._works[name] = found
        return found

    def _forget(self, wanted: set[str]) -> None:
        """Steps that may not begin any more (a pause): their inputs are looked at again then."""
        for name in self._resolving.keys() - wanted:
            self._resolving.pop(name).cancel()

    def _heard(self, act: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """A task of whose end there will be news."""
        task = asyncio.create_task(act)
        task.add_done_callback(lambda _: self._news.put_nowait(_News(None)))
        return task

    async def _resolve(
        self, run: rec.RunRecord, pipeline: Pipeline, name: str
    ) -> Work | PlinthError:
        """The step with its inputs; in flight its recorded digest holds. Beside the loop, since a
        corpus may take long to read. What may pass by itself is waited out; else what is wrong."""
        spec = pipeline.steps[name]
        references = {
            field: machine.step_of(run, reference[1:]).output if reference[0] == "$" else reference
            for field, reference in spec.inputs().items()
        }
        recorded, number = machine.step_of(run, name).input_digest, number_of(run)
        principal = principal_of(run)

        def look() -> Work:
            for field, path in spec.paths().items():  # also of runs from before they were changed
                self._roots.check(path, field=field)
            inputs = {field: self._store.get(made) for field, made in references.items()}
            digest = recorded or input_digest(
                spec,
                inputs={field: record.digest for field, record in inputs.items()},
                surroundings=STEP_KINDS[spec.kind].surroundings(spec, self._run_id, self._roots),
            )
            called = pipeline.output_name(name)
            return Work(self._run_id, name, spec, inputs, digest, called, number, principal)

        while True:
            try:
                return await asyncio.to_thread(look)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run's owner is told
                if not (isinstance(error, PlinthError) and waits_for(error)):
                    return _told(name, error)
                _log.info("a step waits", step=name, reason=error.message)
            await asyncio.sleep(_AGAIN_S)

    async def _perform(self, work: Work) -> None:
        attributes = {"plinth.run_id": work.run_id, "plinth.step": work.step}
        with tracing.span(f"step {work.spec.kind}", attributes=attributes):
            try:
                async for event in self._performer.perform(work):
                    self._news.put_nowait(_News(work.step, event))
            except Exception as raised:  # noqa: BLE001 - whatever it is, the run's owner is told
                error = _told(work.step, raised)
                tracing.failed(error.reason or error.code)
                self._news.put_nowait(_News(work.step, error))

    async def _stop(self, run: rec.RunRecord, pipeline: Pipeline) -> None:
        """Abandons what is in flight and records it as cancelled."""
        for name in machine.in_flight(run):
            if (task := self._tasks.pop(name, None)) is not None:
                await cancel_and_wait(task)
            while (work := self._work(run, pipeline, name)) is None and name in self._resolving:
                await asyncio.wait({self._resolving[name]})  # its digest is known: nothing is read
            if work is not None:
                await self._abandon(work)
            if name in machine.in_flight(run):
                machine.cancel(run, name, now=_now())

    async def _abandon(self, work: Work) -> None:
        try:
            await self._performer.abandon(work)
        except Exception as raised:  # noqa: BLE001 - what it left stays; the run must end all the same
            error = _told(work.step, raised)
            _log.warning("a step could not be undone", step=work.step, reason=error.message)

    async def _take_news(self, run: rec.RunRecord) -> None:
        """Waits for news, then gathers a moment's worth so that progress costs few saves."""
        news = [await self._news.get()]
        if isinstance(news[0].event, Progress):
            await asyncio.sleep(_GATHER_S)
        while not self._news.empty():
            news.append(self._news.get_nowait())
        for one in news:
            if one.step is not None and one.step in self._tasks:
                await self._apply(run, one.step, one.event)

    async def _apply(
        self, run: rec.RunRecord, name: str, event: Progress | StepOutcome | PlinthError | None
    ) -> None:
        match event:
            case Progress(fraction, detail):
                machine.advance(run, name, fraction=fraction, detail=detail)
            case StepOutcome(output, figures, reused, _):
                del self._tasks[name]
                machine.succeed(
                    run, name, output=output, metrics=figures, reused=reused, now=_now()
                )
                if not reused:
                    metrics.took(machine.step_of(run, name).kind, figures)
            case PlinthError():
                del self._tasks[name]
                await self._abandon(self._works[name])
                machine.fail(run, name, error=event.message, now=_now())

    async def _wanted(self, before: Wanted) -> Wanted:
        try:
            return (await self._records.load(self._run_id))[1]
        except Unavailable:
            return before  # Redis is gone; saving will wait for it

    async def _watch(self) -> None:
        while True:
            seen = self._feed.seen(self._run_id)
            await self._feed.changed(self._run_id, seen)
            self._news.put_nowait(_News(None))

    async def _save(self, run: rec.RunRecord) -> None:
        """Waits while Redis is gone (the lease, which can't be renewed then, ends the wait)."""
        run.changed_unix_ms = _now()  # once: the same save sent twice is the same
        while True:
            try:
                return await self._records.save(run, self._leadership)
            except Unavailable:
                await asyncio.sleep(0.5)


def _told(step: str, error: Exception) -> PlinthError:
    """What the run's owner is told of whatever ended a step."""
    if isinstance(error, PlinthError):
        return error
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "mend that, and submit the pipeline again (finished steps are reused)"
        if isinstance(error, PermissionError):
            remedy = "make the file readable to the coordinator, which has its own rights"
        return FailedPrecondition(
            f"{error.filename!s}: {error.strerror or type(error).__name__}; {remedy}",
            reason="FILE_FAILED",
        )
    _log.error("a step failed by a fault of its own", step=step, exc_info=error)
    return Internal(f"internal error: {type(error).__name__}; the coordinator's log has it")


def _now() -> int:
    return time.time_ns() // 1_000_000
