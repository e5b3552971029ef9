"""The trainer's front: jobs over gRPC, and one consumer that carries them out.

The replica itself computes nothing: training runs in a worker group, preparing in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from plinth.internal.v1 import job_records_pb2 as rec
from plinth.internal.v1 import tokenizer_pb2
from plinth.internal.v1.run_records_pb2 import RunRecord
from plinth.shared import redis_keys
from plinth.shared.api.listing import Damaged, page_of
from plinth.shared.api.owners import check_owner, owner_of
from plinth.shared.api.paging import Pages
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.connection import redis_errors
from plinth.shared.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
)
from plinth.shared.identity import SYSTEM, current_principal
from plinth.shared.load import Load, queue_load
from plinth.shared.queue import Queue
from plinth.shared.rpc.handlers import Context
from plinth.shared.rpc.heartbeats import with_heartbeats
from plinth.shared.rpc.server import GrpcService
from plinth.shared.source_roots import SourceRoots
from plinth.shared.tasks import cancel_and_wait
from plinth.trainer.consumer import MAX_ATTEMPTS, QUEUE, JobConsumer
from plinth.trainer.data.documents import check_folder
from plinth.trainer.exchanges import Turn
from plinth.trainer.execution import Execution
from plinth.trainer.job_messages import JOB_FILTERS, JOBS, job_message, new_record
from plinth.trainer.job_requests import (
    check_named,
    check_output,
    checked_id,
    checked_job,
    not_ended,
    within_job,
)
from plinth.trainer.launch import Launcher, ProcessLauncher, RayLauncher
from plinth.trainer.lora_specs import check_lora_targets
from plinth.trainer.records import ENDED, JobRecords
from plinth.trainer.rendering import Renderer
from plinth.trainer.validation import check_spec
from plinth.v1 import chat_pb2
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import jobs_pb2_grpc as rpc

if TYPE_CHECKING:
    from plinth.shared.stage import StageContext


def build(context: StageContext, *, launcher: str = "ray") -> TrainerStage:
    """`launcher`: "ray" for a Ray Train group (Ray is initialised here), or "processes"."""
    if launcher not in ("ray", "processes"):
        raise InvalidArgument(f"launcher {launcher!r} is unknown; use 'ray' or 'processes'")
    trainer = context.settings.trainer
    chosen: Launcher = (
        RayLauncher(trainer.worker_cpus, trainer.worker_resource)
        if launcher == "ray"
        else ProcessLauncher()
    )
    return TrainerStage(context, chosen)


class TrainerStage(rpc.JobServiceServicer):
    """StageFront and servicer of `plinth.v1.JobService`."""

    stage = "trainer"

    def __init__(self, context: StageContext, launcher: Launcher) -> None:
        self._context, self._launcher = context, launcher
        self._roots = SourceRoots.of(context.settings)
        lease_s = context.settings.trainer.lease_s
        self._queue = Queue(context.redis, QUEUE, lease_s=lease_s, max_attempts=MAX_ATTEMPTS)
        self._records = JobRecords(context.redis)
        self._pages = Pages(context.token)
        self._changes = ChangeFeed(context.redis, redis_keys.job_changes())
        self._following: asyncio.Task[None] | None = None
        self._consumer = JobConsumer(
            context.replica_id, self._queue, self._records, self._execution, lease_s=lease_s
        )
        self._consuming: asyncio.Task[None] | None = None

    # -- StageFront ------------------------------------------------------------------------

    def services(self) -> Sequence[GrpcService]:
        def add(server: grpc.aio.Server) -> None:
            rpc.add_JobServiceServicer_to_server(self, server)

        return [GrpcService("plinth.v1.JobService", add)]

    async def start(self) -> None:
        """Begin to take jobs. Unavailable while Redis is gone."""
        await self._changes.open()
        self._following = asyncio.create_task(self._changes.follow())
        self._consuming = asyncio.create_task(self._consumer.run())

    async def check(self) -> None:
        """Unhealthy when nobody takes jobs any more, or tells watchers of them."""
        for task, what in ((self._consuming, "job consumer"), (self._following, "feed of changes")):
            if task is not None and task.done() and not task.cancelled():
                raise Internal(f"the {what} ended: {task.exception()}")

    def announcement(self) -> dict[str, str]:
        return {"running": str(self._consumer.running)}

    async def load(self) -> Load:
        """How late the queue of jobs is, or that this replica has one, which is not to move."""
        running = self._consumer.running
        oldest_s = self._context.settings.scaling.jobs_oldest_s
        ratio = await queue_load(self._queue, oldest_s=oldest_s, running=running, slots=1)
        return Load(ratio, held=bool(running))

    async def drain(self, grace_s: float) -> None:
        """Give the job in work back; what does not stop in time lapses with its lease."""
        try:
            if self._consuming is not None:
                self._consumer.drain()
                await asyncio.wait_for(self._consuming, grace_s)
        except TimeoutError:
            return
        finally:
            if self._following is not None:
                await cancel_and_wait(self._following)
            self._consuming = self._following = None

    def _execution(self, job: rec.JobRecord, fence: int) -> Execution:
        return Execution(
            job,
            fence=fence,
            settings=self._context.settings,
            store=self._context.store,
            launcher=self._launcher,
            renderer=Renderer(self._apply_templates, asyncio.get_running_loop()),
        )

    async def _apply_templates(
        self, model: str, turns: Sequence[Turn]
    ) -> tuple[list[list[int]], list[int]]:
        stub = await self._context.clients.tokenizer(SYSTEM)
        answer = await stub.ApplyChatTemplates(
            tokenizer_pb2.ApplyChatTemplatesRequest(
                model=model,
                conversations=[
                    tokenizer_pb2.Conversation(
                        messages=[chat_pb2.ChatMessage(role=r, content=c) for r, c in messages],
                        add_generation_prompt=open_turn,
                    )
                    for messages, open_turn in turns
                ],
            )
        )
        return [list(sequence.ids) for sequence in answer.sequences], list(answer.stop_token_ids)

    # -- JobService --------------------------------------------------------------------

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> (
        pb.CreateJobResponse
    ):  # fmt: skip
        job_id, spec = checked_id(request.job_id), checked_job(request.job)
        if (known := await self._records.find(job_id)) is None:
            with within_job():
                check_spec(spec)
                principal = current_principal()
                await asyncio.to_thread(self._check_references, spec)
                await asyncio.to_thread(check_output, spec, self._context.store, principal)
            owner = owner_of(principal)
            await self._records.create(new_record(job_id, spec, owner, _now_ms()))
            known = await self._records.get(job_id)
        if known.spec != spec:
            raise AlreadyExists(
                f"there is a job {job_id!r} already, of another specification; give another job_id",
                reason="JOB_EXISTS",
                metadata={"job_id": job_id},
            )
        # Also for a known one: its submitter may have died between record and queue. One that has
        # ended stays so, although the queue may have forgotten it.
        if known.state not in ENDED:
            await self._queue.add(job_id, known.SerializeToString())
        return pb.CreateJobResponse(job=job_message(known))

    def _check_references(self, spec: pb.JobSpec) -> None:
        """What a job names must exist when it is submitted, not only when it is run."""
        train, prepare = spec.train, spec.prepare
        check_named(spec, self._context.store)
        if prepare.corpus_dir:
            folder = self._roots.check(prepare.corpus_dir, field="spec.prepare.corpus_dir")
            check_folder(folder, prepare.corpus_dir, field="spec.prepare.corpus_dir")
        if train.HasField("lora"):
            check_lora_targets(train, self._context.store)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=job_message(await self._records.get(JOBS.id(request.name))))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        wanted = JOB_FILTERS.parse(request.filter)

        async def read(position: str, count: int) -> Sequence[tuple[str, pb.Job | Damaged | None]]:
            found = await self._records.newest(position, count)
            return [
                (at, job_message(one) if isinstance(one, rec.JobRecord) else one)
                for at, one in found
            ]

        page = await page_of(self._pages, request, read, wanted)
        return pb.ListJobsResponse(
            jobs=page.found, next_page_token=page.token, unreachable=page.unreachable
        )

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Context) -> (
        pb.DeleteJobResponse
    ):  # fmt: skip
        try:
            job = await self._owned(request.name)
        except NotFound:
            if request.allow_missing:
                return pb.DeleteJobResponse()
            raise
        if job.state not in ENDED:
            raise not_ended(job.job_id)
        if run_id := await self._run_of(job.job_id):
            raise FailedPrecondition(
                f"{request.name} is of runs/{run_id}, which has not ended and may need its result",
                reason="JOB_IN_USE",
            )
        if not await self._queue.forget(job.job_id):
            raise not_ended(job.job_id)  # its end is being told, or it is begun again
        await self._records.delete(job.job_id)
        return pb.DeleteJobResponse()

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> (
        pb.CancelJobResponse
    ):  # fmt: skip
        job = await self._owned(request.name)
        await self._queue.cancel(job.job_id)
        state = await self._queue.find(job.job_id)
        # None: its submitter found the queue full, or died before it came to that.
        if state is None or state.state == "cancelled":
            job = await self._records.cancel_waiting(job.job_id)
        return pb.CancelJobResponse(job=job_message(job))

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        job_id = JOBS.id(request.name)
        changes = self._records.watch(self._changes, job_id, request.resume_token)
        async with aclosing(with_heartbeats(changes, request.resume_token)) as told:
            await self._records.get(job_id)
            await context.send_initial_metadata(())  # the caller knows now that somebody answers
            async for position, job in told:
                yield pb.WatchJobResponse(job=job and job_message(job), resume_token=position)

    async def _owned(self, name: str) -> rec.JobRecord:
        """NotFound; PermissionDenied for a job that the caller may not change."""
        job = await self._records.get(JOBS.id(name))
        check_owner(job.owner, current_principal(), name)
        return job

    async def _run_of(self, job_id: str) -> str:
        """The run that a job is a step's of, if it has not ended. Ids of such jobs are
        "<run>.<step>.<digest>", and others may look so."""
        run_id = job_id.rpartition(".")[0].rpartition(".")[0]
        if not run_id:
            return ""
        with redis_errors():
            active: Any = self._context.redis.sismember(redis_keys.active_runs(), run_id)
            if not await active:
                return ""
            found: Any = self._context.redis.hget(redis_keys.run(run_id), "record")
            run = RunRecord.FromString(await found or b"")
        return run_id if any(step.job_id == job_id for step in run.steps) else ""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
