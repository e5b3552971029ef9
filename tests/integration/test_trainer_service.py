"""The trainer stage over real gRPC, Redis, store and worker processes; the tokenizer beside it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from transformers import AutoModelForCausalLM, AutoTokenizer

import policy_job
import shown_runs
import trainings
from chat_prompts import special_codec
from job_specs import create_job, model_spec, prepare_spec, train_spec
from patience import PATIENCE_S
from plinth.cli import run_summary, run_view
from plinth.coordinator.steps import jobs
from plinth.internal.v1 import run_records_pb2, tokenizer_pb2
from plinth.internal.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from plinth.shared import redis_keys
from plinth.shared.api.structs import plain_values
from plinth.shared.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from plinth.shared.identity import Principal
from plinth.shared.intake import Intake
from plinth.shared.load import Load
from plinth.shared.rpc.channel import open_channel
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext, run_stage
from plinth.shared.tasks import cancel_and_wait
from plinth.tokenizer.service import build as build_tokenizer
from plinth.trainer.data.shards import Split
from plinth.trainer.service import build as build_trainer
from plinth.v1 import artifacts_pb2, owner_pb2
from plinth.v1 import jobs_pb2 as pb
from plinth.v1.jobs_pb2_grpc import JobServiceStub

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINER = {"background": False, "lease_s": 3.0, "threads": 1}
SHAPE = model_spec(family="llama", layers=2, hidden=32, heads=4, context=64, tie_embeddings=True)


class Stack:
    """A trainer and a tokenizer replica in this process."""

    def __init__(self, settings):
        self.settings = settings
        self.parts = []

    async def add(self, stage, build, **options):
        context = await StageContext.open(self.settings, stage=stage)
        running = await run_stage(context, build(context, **options))
        self.parts.append((context, running))
        return context, running

    def channel(self, running, scopes=("jobs", "tokenize")):
        principal = Principal("t", "k", frozenset(scopes))
        return open_channel(
            running.address,
            stage=running.front.stage,
            settings=self.settings,
            token=self.parts[0][0].token,
            principal=principal,
        )

    async def stop(self):
        for context, running in reversed(self.parts):
            await running.stop(10)
            await context.close()


@pytest.fixture
async def stack(redis_client, redis_server, tmp_path):
    made = Stack(
        load_settings(
            data_dir=tmp_path, redis_url=redis_server, trainer=TRAINER, source_roots=[tmp_path]
        )
    )
    yield made
    await made.stop()


@pytest.fixture
async def trainer(stack):
    context, running = await stack.add("trainer", build_trainer, launcher="processes")
    async with stack.channel(running) as channel:
        yield context, JobServiceStub(channel)


def attempts(end):
    return REGISTRY.get_sample_value("plinth_trainer_attempts_total", {"end": end}) or 0


async def finished(stub, job_id):
    watched = stub.WatchJob(pb.WatchJobRequest(name=f"jobs/{job_id}"))
    seen = [told.job async for told in watched if told.HasField("job")]
    return seen[-1], seen


async def do(stub, job_id, name, **spec):
    await stub.CreateJob(create_job(job_id, pb.JobSpec(output_name=name, **spec)))
    job, _ = await finished(stub, job_id)
    assert job.status.state == pb.JOB_STATE_SUCCEEDED, job.status.error
    return job.status.artifact.removeprefix("artifacts/")


async def test_a_job_in_work_is_a_load_that_must_not_move(stack, trainer):
    _, stub = trainer
    front = stack.parts[0][1].front
    assert await front.load() == Load(0.0, held=False)
    prepare = prepare_spec(builtin="stdlib", max_bytes=300_000)
    spec = pb.JobSpec(output_name="text", prepare=prepare)
    await stub.CreateJob(create_job("corpus", spec))
    async with asyncio.timeout(PATIENCE_S):
        while not (load := await front.load()).held:
            pass
    assert load.ratio == 1.0
    await finished(stub, "corpus")
    async with asyncio.timeout(PATIENCE_S):
        while await front.load() != Load(0.0, held=False):
            pass


async def test_from_the_standard_library_to_a_chat_model(stack, trainer):
    context, stub = trainer
    _, tokenizer = await stack.add("tokenizer", build_tokenizer)
    prepare = prepare_spec(builtin="stdlib", max_bytes=300_000)
    corpus = await do(stub, "corpus", "text", prepare=prepare)
    assert context.store.get(corpus).kind == "corpus"
    async with stack.channel(tokenizer) as channel:
        request = tokenizer_pb2.TrainRequest(corpus=corpus, name="tokens", vocab_size=400)
        answers = [a async for a in TokenizerServiceStub(channel).Train(request)]
    assert answers[-1].artifact.kind == artifacts_pb2.ARTIFACT_KIND_TOKENIZER

    prepare = prepare_spec(corpus="text", tokenizer="tokens")
    dataset = await do(stub, "dataset", "text-tokens", prepare=prepare)
    assert set(context.store.get(dataset).parents) == {"text@1", "tokens@1"}
    train = train_spec(
        objective="clm",
        dataset="text-tokens",
        model=SHAPE,
        sequence_length=64,
        batch_size=8,
        steps=20,
        learning_rate=1e-2,
    )
    base = await do(stub, "base", "base", train=train)
    succeeded = attempts("succeeded")
    again = await do(stub, "base-again", "base", train=train)
    assert attempts("succeeded") == succeeded + 1
    async with asyncio.timeout(PATIENCE_S):  # the record says so a moment before the queue is told
        while REGISTRY.get_sample_value("plinth_trainer_jobs_running"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert again == base

    prepare = prepare_spec(builtin="stdlib-instruct", tokenizer="tokens", max_bytes=6_000)
    await do(stub, "chats", "chats", prepare=prepare)
    folder = context.store.fetch("chats")
    split = Split(folder, "train")
    ids, mask = split.document(0)
    words = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert words.decode(ids[mask == 0]).startswith("<|im_start|>")
    assert "<|im_end|>" in words.decode(ids[mask == 1])
    assert 0 < mask.sum() < len(mask)
    tune = train_spec(
        objective="sft",
        dataset="chats",
        init_from="base",
        sequence_length=64,
        batch_size=2,
        steps=3,
        learning_rate=1e-3,
    )
    chat = await do(stub, "chat", "chat", train=tune)
    assert set(context.store.get(chat).parents) == {"chats@1", "base@1"}
    model = AutoModelForCausalLM.from_pretrained(context.store.fetch("chat"))
    assert model.config.vocab_size == 400
    listed = (await stub.ListJobs(pb.ListJobsRequest())).jobs
    assert [j.name for j in listed][:2] == ["jobs/chat", "jobs/chats"]
    assert not list((Path(stack.settings.data_dir) / "jobs").iterdir())


def published(context, folder, name="words", count=300):
    made = trainings.dataset(folder, trainings.texts(count))
    return context.store.publish(name, "dataset", made)


def training(name="words", steps=40, **changes):
    return train_spec(
        objective="clm",
        dataset=name,
        model=SHAPE,
        sequence_length=32,
        batch_size=8,
        steps=steps,
        learning_rate=1e-2,
        **changes,
    )


async def refused(call, kind, words):
    with pytest.raises(kind) as caught:
        await call
    assert words in caught.value.message
    return caught.value


async def test_a_job_is_made_once_and_ends_once(stack, trainer, tmp_path):
    context, stub = trainer
    published(context, tmp_path / "data")
    request = create_job("one", pb.JobSpec(output_name="m", train=training(steps=5)))
    first = (await stub.CreateJob(request)).job
    assert (await stub.CreateJob(request)).job.spec == first.spec
    other = create_job("one", pb.JobSpec(output_name="m", train=training(steps=7)))
    await refused(stub.CreateJob(other), AlreadyExists, "give another job_id")
    job, seen = await finished(stub, "one")
    assert job.status.state == pb.JOB_STATE_SUCCEEDED and job.status.attempts == 1
    assert job.status.progress.done == job.status.progress.total == 5
    assert job.status.progress.validation_bits_per_byte > 0
    assert (await stub.CreateJob(request)).job.status.state == pb.JOB_STATE_SUCCEEDED
    assert (await finished(stub, "one"))[1][-1].status.artifact == "artifacts/m@1"
    assert len(context.store.list("model")) == 1
    assert seen[0].status.state in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)


async def test_what_is_wrong_is_said_at_the_door(stack, trainer, tmp_path):
    context, stub = trainer
    published(context, tmp_path / "data")

    def submit(**spec):
        return stub.CreateJob(create_job("x", pb.JobSpec(output_name="m", **spec)))

    error = await refused(
        submit(), InvalidArgument, "'prepare', 'train', 'compare' or 'model_import'"
    )
    assert error.field == "job.spec"
    await refused(submit(train=training("missing")), NotFound, "missing")
    await refused(submit(train=training(workers=3)), InvalidArgument, "3 workers")
    await refused(submit(prepare=prepare_spec()), InvalidArgument, "corpus_dir, builtin")
    nowhere = prepare_spec(corpus_dir=str(tmp_path / "none"))
    await refused(submit(prepare=nowhere), InvalidArgument, "does not exist")
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"text": "x"}\n')
    file = prepare_spec(corpus_dir=str(chats))
    await refused(submit(prepare=file), InvalidArgument, "is a file; name the folder")
    await refused(stub.GetJob(pb.GetJobRequest(name="jobs/nobody")), NotFound, "nobody")
    running = stack.parts[0][1]
    async with stack.channel(running, scopes=("tokenize",)) as channel:
        listing = JobServiceStub(channel).ListJobs(pb.ListJobsRequest())
        await refused(listing, PermissionDenied, "jobs")


async def test_failed_jobs_say_why_leave_nothing_and_can_be_tried_again(stack, trainer, tmp_path):
    context, stub = trainer
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_bytes(b"\0\1\2")
    spec = pb.JobSpec(output_name="m", prepare=prepare_spec(corpus_dir=str(corpus)))
    await stub.CreateJob(create_job("bad", spec))
    job, _ = await finished(stub, "bad")
    assert job.status.state == pb.JOB_STATE_FAILED
    assert "a.txt: not UTF-8 text" in job.status.error
    assert context.store.list() == []
    assert not list((tmp_path / "jobs").iterdir())
    queue = stack.parts[0][1].front._queue
    (letter,) = await until(queue.dead_letters)
    assert letter.reason == job.status.error
    (corpus / "a.txt").write_text("good text\n<|endoftext|>\nand more")
    assert await queue.requeue("bad")

    async def tried_again():
        now = (await stub.GetJob(pb.GetJobRequest(name="jobs/bad"))).job
        return now.status.state != pb.JOB_STATE_FAILED

    await until(tried_again)
    assert (await finished(stub, "bad"))[0].status.state == pb.JOB_STATE_SUCCEEDED


def as_a_step(job, kind):
    """As the coordinator takes it from the trainer, and its clients from the coordinator."""
    outcome = jobs._outcome(job)
    return shown_runs.step(kind, outcome.metrics, outcome.output, name="step")


def warned(*steps):
    return [text.plain for text in run_summary.warnings(shown_runs.run(*steps))]


async def test_what_was_left_out_is_told_on_the_screen_and_in_the_manifest(
    stack, trainer, tmp_path
):
    context, stub = trainer
    special_codec(tmp_path / "special", trainings.SPECIAL, CHATML, eos_token="<|im_end|>")
    context.store.publish("tokens", "tokenizer", tmp_path / "special")
    await stack.add("tokenizer", build_tokenizer)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [
        json.dumps({"prompt": f"{n}?", "completion": "yes " * (3 if n % 5 else 400)})
        for n in range(60)
    ]
    (corpus / "rows.jsonl").write_text("\n".join([*rows, *rows[:20]]))
    (corpus / "notes.json").write_text("[]")

    async def do_job(job_id, **spec):
        await do(stub, job_id, job_id, **spec)
        job = (await stub.GetJob(pb.GetJobRequest(name=f"jobs/{job_id}"))).job
        metrics = plain_values(job.status.metrics)
        return job, [Intake.from_json(one) for one in metrics["intake"]]

    spec = pb.JobSpec(output_name="c", prepare=prepare_spec(corpus_dir=str(corpus)))
    spec.prepare.max_left_out = 0.3
    await stub.CreateJob(create_job("strict", spec))
    failed, _ = await finished(stub, "strict")
    assert "1 of 2 files; left out: 1 of kind .json: that leaves out 50%, more than 30%" in (
        failed.status.error
    )
    prepare = prepare_spec(corpus_dir=str(corpus), tokenizer="tokens", validation_fraction=0.1)
    job, told = await do_job("chats", prepare=prepare)
    assert told == [
        Intake("files", 1, {"of kind .json": 1}),
        Intake("chats", 60, {"repeated word for word": 20}),
    ]
    step = as_a_step(job, "data")
    assert all(intake.line() in run_view.about(step) for intake in told)
    assert len(warned(step)) == 2
    assert "25% left out" in warned(step)[1]

    tune = train_spec(
        objective="sft",
        dataset="chats",
        model=SHAPE,
        sequence_length=20,
        batch_size=2,
        steps=2,
        learning_rate=1e-3,
    )
    spec = pb.JobSpec(output_name="m", train=tune)
    await stub.CreateJob(create_job("short", spec))
    failed, _ = await finished(stub, "short")
    assert "Raise sequence_length, up to the model's context of 64" in failed.status.error
    tune.sequence_length = 64
    job, (told,) = await do_job("chat", train=tune)
    assert told.unit == "chats" and told.share == 0
    held_out = told.noted.pop("more held out")
    assert told.taken + held_out == 60
    (cut,) = told.noted.values()
    assert 5 <= cut <= 12
    told.note("more held out", held_out)
    assert told.line() in run_view.about(as_a_step(job, "train"))
    assert not warned(as_a_step(job, "train"))


async def until(ask):
    """The first answer that says yes."""
    for _ in range(400):
        if found := await ask():
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError


async def test_cancelling(stack, trainer, tmp_path):
    context, stub = trainer
    published(context, tmp_path / "data")

    async def submit(job_id):
        spec = pb.JobSpec(output_name="m", train=training(steps=100_000))
        await stub.CreateJob(create_job(job_id, spec))

    await submit("running")
    await submit("waiting")
    async for update in stub.WatchJob(pb.WatchJobRequest(name="jobs/running")):
        if update.job.status.progress.done > 0:
            break
    waiting = (await stub.CancelJob(pb.CancelJobRequest(name="jobs/waiting"))).job
    assert waiting.status.state == pb.JOB_STATE_CANCELLED
    await stub.CancelJob(pb.CancelJobRequest(name="jobs/running"))
    job, _ = await finished(stub, "running")
    assert job.status.state == pb.JOB_STATE_CANCELLED
    assert job.status.progress.done < 100_000
    again = (await stub.CancelJob(pb.CancelJobRequest(name="jobs/running"))).job
    assert again.status.state == pb.JOB_STATE_CANCELLED
    assert list((tmp_path / "jobs" / "running").glob("attempt-*/checkpoints/step-*"))


@pytest.mark.slow
async def test_a_job_outlives_its_replica(stack, tmp_path):
    """Drained in mid-run, then gone without a word: the third replica ends what the first began."""
    context, first = await stack.add("trainer", build_trainer, launcher="processes")
    published(context, tmp_path / "data")
    spec = training(steps=1200, checkpoint_every=50, precision="fp32")
    async with stack.channel(first) as channel:
        stub = JobServiceStub(channel)
        request = pb.JobSpec(output_name="m", train=spec)
        await stub.CreateJob(create_job("long", request))
        await reached(stub, 50)
    await first.stop(20)  # gives the job back
    _, second = await stack.add("trainer", build_trainer, launcher="processes")
    async with stack.channel(second) as channel:
        await reached(JobServiceStub(channel), 120)
        # As if killed: nothing is said to the queue, and the workers die with their parent.
        front = second.front
        front._consumer._current.stop("pause")
        await cancel_and_wait(front._consuming)
        front._consuming = None
    _, third = await stack.add("trainer", build_trainer, launcher="processes")
    async with stack.channel(third) as channel:
        stub = JobServiceStub(channel)
        job, _ = await finished(stub, "long")
        assert job.status.state == pb.JOB_STATE_SUCCEEDED, job.status.error
        assert job.status.attempts >= 2
        assert "resumed" in job.status.progress.note
        whole = await do(stub, "whole", "other", train=spec)
    # A run that was never disturbed made the same bits.
    made = job.status.artifact.removeprefix("artifacts/")
    assert context.store.get(whole).digest == context.store.get(made).digest


async def reached(stub, step):
    async for update in stub.WatchJob(pb.WatchJobRequest(name="jobs/long")):
        if update.job.status.progress.done >= step:
            return
        assert update.job.status.state != pb.JOB_STATE_FAILED, update.job.status.error


async def test_a_policy_that_ran_away_is_not_tried_again(trainer, tmp_path):
    """Another attempt would go the same way; the user is told at once, and what would be right."""
    context, stub = trainer
    dataset, start, reward = await asyncio.to_thread(policy_job.made, tmp_path / "policy")
    for name, kind, folder in (("d", "dataset", dataset), ("m", "model", start)):
        context.store.publish(name, kind, folder)
    context.store.publish("r", "reward", reward)
    train = policy_job.spec(learning_rate=3e-2, policy={"kl_explosion": 0.01})
    spec = pb.JobSpec(output_name="away", train=train)
    await stub.CreateJob(create_job("away", spec))
    job, seen = await finished(stub, "away")
    assert job.status.state == pb.JOB_STATE_FAILED
    assert job.status.attempts == 1
    assert (
        "raise kl_coefficient (now 0.05) or lower the learning rate (now 0.03)" in job.status.error
    )
    assert not any(at.status.state == pb.JOB_STATE_QUEUED for at in seen[1:])


async def test_no_job_makes_the_next_version_of_anothers_artifact(stack, trainer, tmp_path):
    context, stub = trainer
    (tmp_path / "file").write_text("x")
    for name in ("text", "lm-adapter"):
        store = context.store.owned_by(owner_pb2.Owner(tenant="anna", key_id="a"))
        store.publish(name, "corpus", tmp_path / "file")
    (tmp_path / "d").write_text("x")
    context.store.publish("d", "dataset", tmp_path / "d")
    context.store.publish("m", "model", tmp_path / "d")
    lora = train_spec(
        objective="clm",
        dataset="d",
        init_from="m",
        sequence_length=8,
        batch_size=1,
        steps=1,
        lora=pb.LoraSpec(rank=1),
    )
    prepare = prepare_spec(builtin="stdlib", max_bytes=300_000)
    for spec in (
        pb.JobSpec(output_name="text", prepare=prepare),
        pb.JobSpec(output_name="lm", train=lora),
    ):
        with pytest.raises(PermissionDenied) as caught:
            await stub.CreateJob(create_job("theirs", spec))
        assert (caught.value.reason, caught.value.field) == (
            "OTHER_TENANT",
            "job.spec.output_name",
        )
    with pytest.raises(NotFound):
        await stub.GetJob(pb.GetJobRequest(name="jobs/theirs"))


async def test_a_job_that_came_to_no_queue_can_be_cancelled(stack, trainer, monkeypatch):
    _, stub = trainer
    queue = stack.parts[0][1].front._queue
    spec = pb.JobSpec(output_name="x", prepare=prepare_spec(builtin="stdlib", max_bytes=300_000))
    with monkeypatch.context() as full, pytest.raises(ResourceExhausted):
        full.setattr(queue, "_max_length", 0)
        await stub.CreateJob(create_job("waits", spec))
    job = (await stub.CancelJob(pb.CancelJobRequest(name="jobs/waits"))).job
    assert job.status.state == pb.JOB_STATE_CANCELLED
    # Asked for again, what has ended stays so.
    assert (await stub.CreateJob(create_job("waits", spec))).job.status.state == job.status.state
    assert await queue.find("waits") is None
    await stub.DeleteJob(pb.DeleteJobRequest(name="jobs/waits"))
    with pytest.raises(NotFound):
        await stub.GetJob(pb.GetJobRequest(name="jobs/waits"))


async def test_a_job_is_a_runs_if_the_run_says_so(stack, trainer, redis_client):
    _, stub = trainer
    spec = pb.JobSpec(output_name="x", prepare=prepare_spec(builtin="stdlib", max_bytes=300_000))
    run = run_records_pb2.RunRecord(run_id="r")
    run.steps.add(name="s", job_id="r.s.0123")
    await redis_client.hset(redis_keys.run("r"), "record", run.SerializeToString())
    await redis_client.sadd(redis_keys.active_runs(), "r")
    for job_id in ("r.s.0123", "r.s.mine"):
        await stub.CreateJob(create_job(job_id, spec))
        await stub.CancelJob(pb.CancelJobRequest(name=f"jobs/{job_id}"))
        await finished(stub, job_id)
    async with asyncio.timeout(PATIENCE_S):  # its end is told to the queue a moment later
        while True:
            try:
                await stub.DeleteJob(pb.DeleteJobRequest(name="jobs/r.s.mine"))
                break
            except FailedPrecondition as early:
                assert early.reason == "JOB_NOT_ENDED"
    with pytest.raises(FailedPrecondition, match="is of runs/r") as caught:
        await stub.DeleteJob(pb.DeleteJobRequest(name="jobs/r.s.0123"))
    assert caught.value.reason == "JOB_IN_USE"


async def test_a_specification_has_a_size(stack, trainer):
    _, stub = trainer
    spec = pb.JobSpec(output_name="x", prepare=prepare_spec(corpus="c" * (1 << 20)))
    with pytest.raises(InvalidArgument, match="at most 1048576"):
        await stub.CreateJob(create_job("large", spec))


async def test_a_damaged_job_hides_no_other(stack, trainer, redis_client):
    _, stub = trainer
    spec = pb.JobSpec(output_name="x", prepare=prepare_spec(builtin="stdlib", max_bytes=300_000))
    for job_id in ("a", "b"):
        await stub.CreateJob(create_job(job_id, spec))
        await finished(stub, job_id)
    await redis_client.hset(redis_keys.job("a"), "job", b"\xff")
    page = await stub.ListJobs(pb.ListJobsRequest())
    assert ([job.name for job in page.jobs], list(page.unreachable)) == (["jobs/b"], ["jobs/a"])
    with pytest.raises(DataLoss, match="job a is damaged"):
        await stub.GetJob(pb.GetJobRequest(name="jobs/a"))


async def test_what_a_job_refers_to_is_told_of_its_field(stack, trainer, tmp_path):
    context, stub = trainer
    (tmp_path / "d").write_text("x")
    for name, kind in (("d", "dataset"), ("m", "model")):
        context.store.publish(name, kind, tmp_path / "d")
    compare = pb.CompareSpec(dataset="d", models=["m", "gone"], reward="m")
    for spec, field in (
        (pb.JobSpec(output_name="x", prepare=prepare_spec(corpus="c", tokenizer="t")), "tokenizer"),
        (pb.JobSpec(output_name="x", compare=compare), "models"),
        (pb.JobSpec(output_name="x", model_import=pb.ImportSpec(files="gone@1")), "files"),
    ):
        with pytest.raises(NotFound) as caught:
            await stub.CreateJob(create_job("j", spec))
        assert caught.value.field == f"job.spec.{spec.WhichOneof('work')}.{field}"
    for name in ("jobs/é", "jobs/j:events", "jobs/a@1", "jobs/" + "j" * 101, "runs/j"):
        with pytest.raises(InvalidArgument) as wrong:
            await stub.GetJob(pb.GetJobRequest(name=name))
        assert wrong.value.field == "name"
