"""Who may change and delete runs and jobs, when, and what is left of them; over real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coordinator_replica import until
from job_specs import create_job, prepare_spec, train_spec
from patience import PATIENCE_S
from plinth.coordinator import run_service
from plinth.coordinator.service import build as build_coordinator
from plinth.internal.v1 import run_records_pb2
from plinth.shared import redis_keys
from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from plinth.shared.identity import Principal
from plinth.shared.queue import Queue
from plinth.shared.rpc.heartbeats import with_heartbeats
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext
from plinth.trainer import service as trainer_service
from plinth.trainer.consumer import QUEUE, JobConsumer
from plinth.trainer.service import build as build_trainer
from plinth.v1 import jobs_pb2, runs_pb2
from shown_runs import create_run
from stage_replicas import Stages

MINE = Principal("acme", "k1", frozenset({"runs", "jobs"}))
THEIRS = Principal("rival", "k2", frozenset({"runs", "jobs"}))
ADMIN = Principal("rival", "k3", frozenset({"admin"}))
JOB = jobs_pb2.JobSpec(output_name="text", prepare=prepare_spec(builtin="stdlib", max_bytes=9000))
TEXT = "{name: p, steps: {one: {kind: data, builtin: stdlib, max_bytes: 9000}}}"


@pytest.fixture
async def stages(
    tmp_path: Path, redis_server: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StageContext]:
    """A coordinator, and a trainer that takes no job, whose heartbeats come often."""

    async def waits(consumer: JobConsumer) -> None:
        await consumer._stopping.wait()

    monkeypatch.setattr(JobConsumer, "_claim", waits)
    often = partial(with_heartbeats, every_s=0.02)
    for module in (run_service, trainer_service):
        monkeypatch.setattr(module, "with_heartbeats", often)
    settings = load_settings(data_dir=tmp_path, redis_url=redis_server, cluster_token="t" * 32)
    made = Stages(settings)
    try:
        await made.add("trainer", build_trainer, launcher="processes")
        yield await made.add("coordinator", build_coordinator)
    finally:
        await made.stop()


async def refused(call: Any, kind: type[Exception], reason: str) -> Any:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.reason == reason, caught.value  # type: ignore[attr-defined]
    return caught.value


async def test_a_job_is_its_owners(stages: StageContext, redis_client: Redis) -> None:
    mine, theirs, admin = [await stages.clients.trainer(who) for who in (MINE, THEIRS, ADMIN)]
    job = (await mine.CreateJob(create_job("a", JOB))).job
    assert (job.owner.tenant, job.owner.key_id) == ("acme", "k1")
    assert job.create_time.seconds and job.update_time.seconds
    assert (await theirs.GetJob(jobs_pb2.GetJobRequest(name="jobs/a"))).job == job
    cancel = jobs_pb2.CancelJobRequest(name="jobs/a")
    delete = jobs_pb2.DeleteJobRequest(name="jobs/a")
    await refused(theirs.CancelJob(cancel), PermissionDenied, "OTHER_TENANT")
    await refused(theirs.DeleteJob(delete), PermissionDenied, "OTHER_TENANT")
    await refused(mine.DeleteJob(delete), FailedPrecondition, "JOB_NOT_ENDED")
    assert (await mine.CancelJob(cancel)).job.status.state == jobs_pb2.JOB_STATE_CANCELLED
    await admin.DeleteJob(delete)
    for call in (mine.GetJob(jobs_pb2.GetJobRequest(name="jobs/a")), mine.DeleteJob(delete)):
        await refused(call, NotFound, "JOB_NOT_FOUND")
    delete.allow_missing = True
    await mine.DeleteJob(delete)
    assert not (await mine.ListJobs(jobs_pb2.ListJobsRequest())).jobs
    assert await redis_client.ttl(redis_keys.job("a")) > 0  # a fence, for writers who are late
    # Its id is free, for another specification too, and the queue takes it.
    other = jobs_pb2.JobSpec(output_name="other", prepare=JOB.prepare)
    assert (await theirs.CreateJob(create_job("a", other))).job.owner.tenant == "rival"
    queued = await Queue(redis_client, QUEUE).find("a")
    assert queued is not None and queued.state == "waiting"
    assert await redis_client.ttl(redis_keys.job("a")) == -1


async def test_a_job_that_failed_takes_its_dead_letter_along(
    stages: StageContext, redis_client: Redis
) -> None:
    stub, queue = await stages.clients.trainer(MINE), Queue(redis_client, QUEUE)
    await stub.CreateJob(create_job("a", JOB))
    lease = await queue.claim("worker", wait_s=1)
    assert lease is not None
    records = trainer_service.JobRecords(redis_client)
    job = await records.get("a")
    job.state = jobs_pb2.JOB_STATE_FAILED
    assert await records.write(job, lease.fence)
    delete = jobs_pb2.DeleteJobRequest(name="jobs/a")
    # Its end was recorded, and the queue is about to be told.
    await refused(stub.DeleteJob(delete), FailedPrecondition, "JOB_NOT_ENDED")
    await queue.fail(lease, "no use", retry=False)
    assert len(await queue.dead_letters()) == 1
    await stub.DeleteJob(delete)
    assert await queue.dead_letters() == []
    assert not await records.write(job, lease.fence)  # the one that ended it comes once more
    assert await records.find("a") is None


async def test_a_job_stays_while_its_run_goes_on(stages: StageContext, redis_client: Redis) -> None:
    stub = await stages.clients.trainer(MINE)
    await stub.CreateJob(create_job("night.1.text.ab12", JOB))
    await stub.CancelJob(jobs_pb2.CancelJobRequest(name="jobs/night.1.text.ab12"))
    run = run_records_pb2.RunRecord(run_id="night.1")
    run.steps.add(name="text", job_id="night.1.text.ab12")
    await redis_client.hset(redis_keys.run("night.1"), "record", run.SerializeToString())
    await redis_client.sadd(redis_keys.active_runs(), "night.1")
    delete = jobs_pb2.DeleteJobRequest(name="jobs/night.1.text.ab12")
    error = await refused(stub.DeleteJob(delete), FailedPrecondition, "JOB_IN_USE")
    assert "runs/night.1" in error.message
    await redis_client.srem(redis_keys.active_runs(), "night.1")
    await stub.DeleteJob(delete)


async def test_a_run_is_its_owners_and_so_are_its_jobs(
    stages: StageContext, redis_client: Redis
) -> None:
    mine, theirs, admin = [await stages.clients.runs(who) for who in (MINE, THEIRS, ADMIN)]
    run = (await mine.CreateRun(create_run("r", TEXT))).run
    assert (run.name, run.owner.tenant, run.owner.key_id) == ("runs/r", "acme", "k1")
    assert run.create_time == run.update_time
    asked = {"name": "runs/r"}
    for call in (
        theirs.PauseRun(runs_pb2.PauseRunRequest(**asked)),
        theirs.ResumeRun(runs_pb2.ResumeRunRequest(**asked)),
        theirs.CancelRun(runs_pb2.CancelRunRequest(**asked)),
        theirs.DeleteRun(runs_pb2.DeleteRunRequest(**asked)),
    ):
        await refused(call, PermissionDenied, "OTHER_TENANT")

    async def job() -> str:
        found = (await theirs.GetRun(runs_pb2.GetRunRequest(**asked))).run
        return str(found.status.steps[0].job)

    trainer = await stages.clients.trainer(THEIRS)
    name = await until(job)

    async def there() -> bool:
        jobs = (await trainer.ListJobs(jobs_pb2.ListJobsRequest())).jobs
        return [(one.name, one.owner.tenant, one.owner.key_id) for one in jobs] == [
            (name, "acme", "k1")
        ]

    await until(there)
    cancel = jobs_pb2.CancelJobRequest(name=name)
    await refused(trainer.CancelJob(cancel), PermissionDenied, "OTHER_TENANT")
    # Whoever may read a run may fork it, and the fork is theirs.
    fork = runs_pb2.ForkRunRequest(name="runs/r", run_id="f", from_step="one")
    assert (await theirs.ForkRun(fork)).run.owner.tenant == "rival"
    delete = runs_pb2.DeleteRunRequest(**asked)
    await refused(mine.DeleteRun(delete), FailedPrecondition, "RUN_NOT_ENDED")
    ended = (await admin.CancelRun(runs_pb2.CancelRunRequest(**asked))).run
    assert ended.status.state == runs_pb2.RUN_STATE_CANCELLED
    assert ended.update_time.seconds >= ended.status.end_time.seconds
    # For whoever was away when it ended; not for ever.
    assert await redis_client.ttl(redis_keys.run_log("r")) > 0
    await mine.DeleteRun(delete)
    await refused(mine.DeleteRun(delete), NotFound, "RUN_NOT_FOUND")
    await mine.DeleteRun(runs_pb2.DeleteRunRequest(name="runs/r", allow_missing=True))
    listed = (await mine.ListRuns(runs_pb2.ListRunsRequest())).runs
    assert [one.name for one in listed] == ["runs/f"]
    kept = [key async for key in redis_client.scan_iter(f"{redis_keys.run('r')}*")]
    assert kept == []
    assert (await theirs.GetRun(runs_pb2.GetRunRequest(name="runs/f"))).run.status.forked_from == (
        "runs/r"
    )
    again = (await theirs.CreateRun(create_run("r", TEXT))).run
    assert again.owner.tenant == "rival"


async def test_heartbeats_while_nothing_changes(stages: StageContext) -> None:
    runs, trainer = await stages.clients.runs(MINE), await stages.clients.trainer(MINE)
    await runs.CreateRun(create_run("r", TEXT))
    await runs.PauseRun(runs_pb2.PauseRunRequest(name="runs/r"))
    await trainer.CreateJob(create_job("j", JOB))

    def watch_run(token: str) -> Any:
        return runs.WatchRun(runs_pb2.WatchRunRequest(name="runs/r", resume_token=token))

    def watch_job(token: str) -> Any:
        return trainer.WatchJob(jobs_pb2.WatchJobRequest(name="jobs/j", resume_token=token))

    async with asyncio.timeout(PATIENCE_S):
        for what, watch in (("run", watch_run), ("job", watch_job)):
            call = watch("")
            first = await call.read()
            assert first.HasField(what) and first.resume_token
            beats = [await call.read() for _ in range(20)]
            beat = beats[-1]
            assert not beat.HasField(what)
            assert [field.name for field, _ in beat.ListFields()] == ["resume_token"]
            call.cancel()
            # With its token a watch goes on, and its heartbeats say where it is.
            call = watch(beat.resume_token)
            assert await call.read() == beat
            call.cancel()


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (
            create_job("x", jobs_pb2.JobSpec(output_name="m", train=train_spec(objective="clm"))),
            "INVALID_ARGUMENT",
            "job.spec.train.dataset",
        ),
        (create_job("x", jobs_pb2.JobSpec(output_name="m")), "INVALID_ARGUMENT", "job.spec"),
        (create_job("a/b", JOB), "INVALID_ARGUMENT", "job_id"),
        (create_job("", JOB), "INVALID_ARGUMENT", "job_id"),
        (
            jobs_pb2.CreateJobRequest(job_id="x", job=jobs_pb2.Job(name="jobs/x", spec=JOB)),
            "INVALID_ARGUMENT",
            "job.name",
        ),
    ],
)
async def test_what_is_wrong_with_a_job_is_named(
    stages: StageContext, request_: jobs_pb2.CreateJobRequest, reason: str, field: str
) -> None:
    stub = await stages.clients.trainer(MINE)
    error = await refused(stub.CreateJob(request_), InvalidArgument, reason)
    assert error.field == field


async def test_what_a_request_says_is_known(stages: StageContext) -> None:
    """Enums of a newer client, names of other resources, filters of what there is not."""
    runs, trainer = await stages.clients.runs(MINE), await stages.clients.trainer(MINE)
    newer = jobs_pb2.TrainSpec(objective=99)  # type: ignore[arg-type]
    newer.policy.kl_in = 7  # type: ignore[assignment]
    spec = jobs_pb2.JobSpec(output_name="m", train=newer)
    error = await refused(trainer.CreateJob(create_job("x", spec)), InvalidArgument, "ENUM_VALUE")
    assert error.field == "job.spec.train.objective"
    assert "OBJECTIVE_CLM" in error.message
    newer.objective = jobs_pb2.OBJECTIVE_PPO
    spec = jobs_pb2.JobSpec(output_name="m", train=newer)
    error = await refused(trainer.CreateJob(create_job("x", spec)), InvalidArgument, "ENUM_VALUE")
    assert error.field == "job.spec.train.policy.kl_in"
    for name in ("r", "jobs/r", "runs/", "runs/a/b", ""):
        call = runs.GetRun(runs_pb2.GetRunRequest(name=name))
        await refused(call, InvalidArgument, "RESOURCE_NAME")
    for text in ("state = DREAMING", "colour = red", "state RUNNING"):
        await refused(
            runs.ListRuns(runs_pb2.ListRunsRequest(filter=text)), InvalidArgument, "FILTER"
        )
    asked = create_run("r", TEXT)
    asked.run.status.error = "mine"
    error = await refused(runs.CreateRun(asked), InvalidArgument, "INVALID_ARGUMENT")
    assert error.field == "run.status"
