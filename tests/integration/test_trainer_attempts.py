"""Attempts at one job: consumers on one folder, and a disk that was full."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import pytest
from safetensors.torch import load_file

import trainings
from job_specs import model_spec, train_spec
from patience import PATIENCE_S
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.models.adapters.lora import LoraConfig
from plinth.shared.errors import Unavailable
from plinth.shared.queue import Queue
from plinth.shared.settings import load_settings
from plinth.shared.storage import storage_errors
from plinth.shared.store import ArtifactStore
from plinth.trainer import checkpoint
from plinth.trainer.consumer import MAX_ATTEMPTS, QUEUE, JobConsumer
from plinth.trainer.execution import Execution
from plinth.trainer.loop import Group, TrainConfig, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.records import ENDED, JobRecords
from plinth.v1 import jobs_pb2 as pb

STEPS = 12
LEASE_S = 1.0


class Here:
    """A launcher that trains in the calling thread; `gate` is passed at each look for a control."""

    def __init__(self, gate=lambda: None, ready=lambda: None):
        self.gate, self.ready, self.runs, self.resumed = gate, ready, 0, []

    def run(self, folder, config):
        self.runs += 1
        gate = self.gate

        class Gated(JobFolder):
            def requested(self):
                gate()
                return super().requested()

        self.ready()
        job = Gated(folder)
        train(TrainConfig.read(folder), job, Group())  # as a worker does
        self.resumed.append(job.progress().note)


class Gate:
    """Closed at the n-th pass: `there` is set, and it waits until `go`."""

    def __init__(self, number):
        self.number, self.there, self.go = number, threading.Event(), threading.Event()

    def __call__(self):
        self.number -= 1
        if self.number == 0:
            self.there.set()
            assert self.go.wait(PATIENCE_S)


class Site:
    """A store, a data directory and Redis, that several consumers share."""

    def __init__(self, redis, tmp_path):
        self.redis = redis
        self.settings = load_settings(data_dir=tmp_path / "data", trainer={"threads": 1})
        self.store = ArtifactStore(self.settings.store())
        self.records = JobRecords(redis)
        self.jobs = tmp_path / "data" / "jobs"
        made = trainings.dataset(tmp_path / "made", trainings.texts(120))
        self.store.publish("words", "dataset", made)

    def queue(self):
        return Queue(self.redis, QUEUE, lease_s=LEASE_S, max_attempts=MAX_ATTEMPTS, backoff_s=0.05)

    async def submit(self, job_id, output="m", **changes):
        spec = train_spec(
            objective="clm",
            dataset="words",
            model=model_spec(family="llama", layers=2, hidden=32, heads=4, context=32),
            sequence_length=32,
            batch_size=8,
            steps=STEPS,
            learning_rate=1e-2,
            checkpoint_every=2,
            precision="fp32",
        )
        for name, value in changes.items():
            setattr(spec, name, value)
        job = rec.JobRecord(job_id=job_id, spec=pb.JobSpec(output_name=output, train=spec))
        job.state = pb.JOB_STATE_QUEUED
        await self.records.create(job)
        await self.queue().add(job_id, job.SerializeToString())

    def consumer(self, name, launcher):
        def execution(job, fence):
            return Execution(
                job,
                fence=fence,
                settings=self.settings,
                store=self.store,
                launcher=launcher,
                renderer=None,
            )

        queue = self.queue()
        made = JobConsumer(name, queue, self.records, execution, lease_s=LEASE_S)
        return made, queue

    async def ended(self, job_id):
        async with asyncio.timeout(PATIENCE_S):
            while (job := await self.records.get(job_id)).state not in ENDED:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return job

    def weights(self, record):
        folder = self.store.fetch(f"{record.name}@{record.version}")
        return load_file(folder / "model.safetensors")


@pytest.fixture
async def site(redis_client, tmp_path):
    return Site(redis_client, tmp_path)


@asynccontextmanager
async def consuming(consumer):
    task = asyncio.create_task(consumer.run())
    try:
        yield
    finally:
        consumer.drain()
        async with asyncio.timeout(PATIENCE_S):
            await task


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def undisturbed(site):
    """The job without any harm, under a name of its own."""
    consumer, _ = site.consumer("alone", Here())
    async with consuming(consumer):
        await site.submit("alone", output="alone")
        return site.weights((await site.ended("alone")).artifact)


def same(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def cut_off(queue):
    """A consumer whose heartbeats don't arrive, until the event is set."""
    healed, real = threading.Event(), queue.heartbeat

    async def heartbeat(lease):
        if not healed.is_set():
            raise Unavailable("cut off")
        await real(lease)

    queue.heartbeat = heartbeat
    return healed


@pytest.mark.parametrize("first_is", ["training", "failing"])
async def test_who_lost_its_lease_does_not_touch_its_successors_folder(site, first_is):
    """The first is cut off in mid-run, the second takes over and is in work when the first learns
    of it. It stops, or fails, and cleans up; the second's one run goes on to its end."""
    first_gate, second_gate = Gate(5), Gate(3)
    first, second = Here(first_gate), Here(second_gate)
    if first_is == "failing":  # before there is any checkpoint, of either
        first_gate, second_gate = Gate(1), Gate(1)

        def fails():
            first_gate()
            raise OSError("the machine is ill")

        first, second = Here(ready=fails), Here(ready=second_gate)
    one, queue = site.consumer("first", first)
    healed = cut_off(queue)
    two, _ = site.consumer("second", second)
    async with AsyncExitStack() as stack:
        for gate in (first_gate, second_gate):
            stack.callback(gate.go.set)
        await stack.enter_async_context(consuming(one))
        await site.submit("j")
        await until(first_gate.there.is_set)
        await stack.enter_async_context(consuming(two))
        await until(second_gate.there.is_set)
        if first_is == "training":
            healed.set()
            # It has asked its own workers to stop, before they look again.
            await until(lambda: list(site.jobs.rglob("control")))
        first_gate.go.set()
        if first_is == "failing":
            healed.set()
        await until(lambda: not one.running)
        one.drain()
        second_gate.go.set()
        job = await site.ended("j")
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert (job.attempts, first.runs, second.runs) == (2, 1, 1)
    if first_is == "training":
        assert second.resumed[0].startswith("resumed at step 4")
    assert same(site.weights(job.artifact), await undisturbed(site))
    assert not list(site.jobs.glob("*")), "something was left behind"


@contextmanager
def full_disk(site, how, monkeypatch):
    """While it lasts, the third checkpoint (and all after it) does not fit."""
    if how == "injected":
        real, synced = checkpoint.os.fsync, 0

        def full(handle):
            nonlocal synced
            synced += 1
            if synced > 3 * 5:  # files and folders of a checkpoint
                raise OSError(28, "No space left on device")
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, "fsync", full)
            yield
        return
    site.jobs.mkdir(parents=True, exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", str(site.jobs)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let this user mount")
    yield
    subprocess.run(["mount", "-o", "remount,size=64m", str(site.jobs)], check=True)


def unmounted(site):
    subprocess.run(["umount", str(site.jobs)], check=False, capture_output=True)


@pytest.mark.parametrize("how", ["injected", pytest.param("tmpfs", marks=pytest.mark.slow)])
@pytest.mark.parametrize("again", ["requeued", "another job"])
async def test_after_a_full_disk_it_goes_on_from_its_last_checkpoint(site, how, again, monkeypatch):
    """As the error says, by both of the ways that it names."""
    launcher = Here()
    consumer, queue = site.consumer("one", launcher)
    try:
        async with consuming(consumer):
            with full_disk(site, how, monkeypatch):
                await site.submit("j")
                job = await site.ended("j")
            assert job.state == pb.JOB_STATE_FAILED
            assert "the disk is full" in job.error
            assert "plinth queue requeue trainer-jobs" in job.error
            kept = sorted(path.name for path in site.jobs.rglob("step-*"))[-1]
            step = int(kept.removeprefix("step-"))
            assert 0 < step < STEPS
            assert job.error.endswith(f"goes on from its last checkpoint, step {step}")
            if again == "requeued":
                await until_dead(queue, "j")
                await queue.requeue("j")
                await until(lambda: launcher.runs == 2)
                job = await site.ended("j")
            else:
                await site.submit("k")
                job = await site.ended("k")
            assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
            assert launcher.resumed[-1].startswith(f"resumed at step {step}")
            assert same(site.weights(job.artifact), await again_undisturbed(site, launcher))
            assert not list(site.jobs.glob("*")), "something was left behind"
    finally:
        unmounted(site)


@pytest.mark.parametrize("again", ["requeued", "another job"])
async def test_after_a_full_store_no_step_is_taken_again(site, again, monkeypatch):
    """As the runbook says: the job fails when it publishes, with all its steps behind it."""
    launcher = Here()
    consumer, queue = site.consumer("one", launcher)
    async with consuming(consumer):
        with monkeypatch.context() as patch:

            def full(*_, **__):
                with storage_errors("file:///store"):
                    raise OSError(28, "No space left on device")

            patch.setattr(site.store, "publish", full)
            await site.submit("j")
            job = await site.ended("j")
        assert job.state == pb.JOB_STATE_FAILED
        assert "the store file:///store is full" in job.error
        if again == "requeued":
            await until_dead(queue, "j")
            await queue.requeue("j")
            await until(lambda: launcher.runs == 2)
        else:
            await site.submit("k")
        job = await site.ended("j" if again == "requeued" else "k")
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert launcher.resumed[-1].startswith(f"resumed at step {STEPS}")
    assert job.progress.loss > 0
    assert job.progress.tokens_per_second > 0


async def until_dead(queue, job_id):
    async with asyncio.timeout(PATIENCE_S):
        while (await queue.find(job_id)).state != "dead":  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def again_undisturbed(site, launcher):
    await site.submit("alone", output="alone")
    job = await site.ended("alone")
    assert "resumed" not in launcher.resumed[-1]  # a result that is there is not gone on from
    return site.weights(job.artifact)


@pytest.mark.parametrize(
    "other", [{"seed": 5}, pytest.param({"lora": True}, marks=pytest.mark.slow)]
)
async def test_a_checkpoint_of_other_inputs_is_left_alone(site, other, monkeypatch):
    launcher = Here()
    consumer, _ = site.consumer("one", launcher)
    async with consuming(consumer):
        with full_disk(site, "injected", monkeypatch):
            await site.submit("j")
            await site.ended("j")
        kept = list(site.jobs.rglob("step-*"))
        if other.pop("lora", False):
            await site.submit("base", output="base", seed=9)
            await site.ended("base")
            spec = train_spec(
                objective="clm",
                dataset="words",
                init_from="base",
                sequence_length=32,
                batch_size=8,
                steps=STEPS,
                learning_rate=1e-2,
                lora=pb.LoraSpec(rank=LoraConfig().rank),
            )
            job = rec.JobRecord(job_id="k", spec=pb.JobSpec(output_name="k", train=spec))
            job.state = pb.JOB_STATE_QUEUED
            await site.records.create(job)
            await site.queue().add("k", job.SerializeToString())
        else:
            await site.submit("k", output="k", **other)
        job = await site.ended("k")
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.error
    assert "resumed" not in launcher.resumed[-1]
    assert kept == list(site.jobs.rglob("step-*"))


async def test_the_last_word_of_a_job_is_its_last_step(site):
    """Loss and rate as they were published, whenever progress was last told of."""
    consumer, _ = site.consumer("one", Here())
    async with consuming(consumer):
        for number in range(2):
            await site.submit(f"j{number}", output=f"m{number}", seed=number)
            job = await site.ended(f"j{number}")
            metrics = site.store.get(f"m{number}").manifest["metrics"]
            progress = job.progress
            assert (progress.done, progress.total) == (STEPS, STEPS)
            assert progress.loss == metrics["train_loss"] > 0
            assert progress.tokens_per_second == metrics["tokens_per_second"] > 0
        await site.submit("again", output="m0", seed=0)  # found, not trained
        again = await site.ended("again")
        assert again.progress.loss == site.store.get("m0").manifest["metrics"]["train_loss"] > 0
        assert again.progress.tokens_per_second > 0
