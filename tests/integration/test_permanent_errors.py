"""What can't get better is told at the first attempt, with file, line and reason: chats that the
tokenizer stage refuses, and files whose very names can't be written down."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from job_specs import create_job, prepare_spec
from patience import PATIENCE_S
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.shared.identity import Principal
from plinth.shared.queue import Queue
from plinth.shared.redis_keys import job as job_key
from plinth.shared.rpc.channel import open_channel
from plinth.shared.settings import Settings, load_settings
from plinth.shared.stage import StageContext, run_stage
from plinth.tokenizer.service import build as build_tokenizer
from plinth.trainer.consumer import QUEUE
from plinth.trainer.service import build as build_trainer
from plinth.v1 import jobs_pb2 as pb
from plinth.v1.jobs_pb2_grpc import JobServiceStub
from trainings import tokenizer as make_tokenizer

# As many models' do: roles must take turns, and there is no system.
STRICT = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Stack:
    def __init__(self, context: StageContext, stub: Any, folder: Path) -> None:
        self.context, self.stub, self.folder = context, stub, folder

    async def job(self, name: str, **prepare: Any) -> pb.Job:
        """How a preparation ends, or stands after its first attempt."""
        spec = pb.JobSpec(output_name=name, prepare=prepare_spec(**prepare))
        await self.stub.CreateJob(create_job(name, spec))
        last = pb.Job()
        async with asyncio.timeout(PATIENCE_S):
            async for told in self.stub.WatchJob(pb.WatchJobRequest(name=f"jobs/{name}")):
                last = told.job if told.HasField("job") else last
                if last.status.attempts and last.status.state == pb.JOB_STATE_QUEUED:
                    break
        return last

    async def refused(self, name: str, **prepare: Any) -> str:
        job = await self.job(name, **prepare)
        assert job.status.state == pb.JOB_STATE_FAILED, (job.status.state, job.status.error)
        assert job.status.attempts == 1
        return str(job.status.error)

    def chats(self, name: str, *rows: list[tuple[str, str]]) -> str:
        folder = self.folder / name
        folder.mkdir()
        lines = (
            json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) for row in rows
        )
        (folder / "chats.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return str(folder)

    def tokenizer(self, name: str, template: str | None) -> None:
        folder = self.folder / f"made-{name}"
        make_tokenizer(folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        self.context.store.publish(name, "tokenizer", folder)


@asynccontextmanager
async def running(settings: Settings, stage: str, build: Callable[..., Any], **options: Any) -> Any:
    context = await StageContext.open(settings, stage=stage)
    replica = await run_stage(context, build(context, **options))
    try:
        yield context, replica
    finally:
        await replica.stop(10)
        await context.close()


@pytest.fixture
async def stack(redis_client: Any, redis_server: str, tmp_path: Path) -> AsyncIterator[Stack]:
    settings = load_settings(
        data_dir=tmp_path / "data",
        redis_url=redis_server,
        trainer={"background": False, "lease_s": 3.0, "threads": 1},
        source_roots=[tmp_path],
    )
    async with (
        running(settings, "tokenizer", build_tokenizer),
        running(settings, "trainer", build_trainer, launcher="processes") as (context, replica),
        open_channel(
            replica.address,
            stage="trainer",
            settings=settings,
            token=context.token,
            principal=Principal("t", "k", frozenset({"jobs"})),
        ) as channel,
    ):
        yield Stack(context, JobServiceStub(channel), tmp_path)


def turns(*contents: str) -> list[tuple[str, str]]:
    return [("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)]


GOOD = [turns(f"What is {number}?", f"It is {number}.") for number in range(40)]


async def test_chats_that_no_attempt_will_render(stack: Stack) -> None:
    stack.tokenizer("bare", None)
    stack.tokenizer("strict", STRICT)
    good = stack.chats("good", *GOOD)

    error = await stack.refused("untemplated", corpus_dir=good, tokenizer="bare")
    assert "bare@1 has no chat template" in error
    # What it advises helps: the same job, with a template beside the tokenizer.
    assert "chat_template.jinja" in error
    made = await stack.job("templated", corpus_dir=good, tokenizer="strict")
    assert made.status.state == pb.JOB_STATE_SUCCEEDED, made.status.error

    for name, wrong, why in (
        ("system", [("system", "Be brief."), *turns("Hi", "Ho")], "System role not supported"),
        ("twice", [("user", "first words"), *turns("Hi", "Ho")], "must alternate"),
    ):
        folder = stack.chats(name, *GOOD[:7], wrong, *GOOD[7:])
        error = await stack.refused(f"{name}-chats", corpus_dir=folder, tokenizer="strict")
        assert error.startswith(f"{folder}/chats.jsonl:8: the chat template: "), error
        assert why in error
        assert repr(wrong[0][1]) in error

    # The same of a corpus that an earlier job made, and of pairs.
    corpus = await stack.job("chats", corpus_dir=str(stack.folder / "system"))
    assert corpus.status.state == pb.JOB_STATE_SUCCEEDED, corpus.status.error
    error = await stack.refused("from-corpus", corpus="chats", tokenizer="strict")
    assert error.startswith(f"{stack.folder}/system/chats.jsonl:8: ")
    shutil.rmtree(stack.folder / "system")  # then a corpus' own file and line are all there is
    error = await stack.refused("from-corpus-alone", corpus="chats", tokenizer="strict")
    path, line = error.split(": ")[0].rsplit(":", 1)
    text = await asyncio.to_thread(Path(path).read_text)
    assert "Be brief." in text.splitlines()[int(line) - 1]


async def test_a_chat_that_is_too_long_for_any_attempt(stack: Stack) -> None:
    stack.tokenizer("strict", STRICT)
    for size in (9_000_000, 20_000_000):  # more than the tokenizer takes; than a message may hold
        rows = [*GOOD[:3], turns("x" * size, "yes"), *GOOD[3:]]
        folder = stack.chats(f"long-{size}", *rows)
        error = await stack.refused(f"of-{size}", corpus_dir=folder, tokenizer="strict")
        assert error.startswith(f"{folder}/chats.jsonl:4: "), error
        assert f"{size:,}"[:4] in error or f"{size:,}"[:5] in error
        assert "at most" in error


async def test_a_file_whose_name_is_no_text(stack: Stack) -> None:
    folder = stack.folder / "latin"
    folder.mkdir()
    whole = gzip.compress(b"".join(b"words %d\n<|endoftext|>\n" % i for i in range(4_000)))
    name = os.fsdecode(b"caf\xe9.txt.gz")
    (folder / name).write_bytes(whole[:-20])
    error = await stack.refused("cut-off", corpus_dir=str(folder))
    assert f"{folder}/caf\\xe9.txt.gz: not a complete gzip file" in error
    (folder / name).write_bytes(whole)  # as it advises
    made = await stack.job("whole", corpus_dir=str(folder))
    assert made.status.state == pb.JOB_STATE_SUCCEEDED, made.status.error


async def test_what_is_no_job_ends_and_the_next_one_is_done(stack: Stack) -> None:
    redis = stack.context.redis
    jobs = Queue(redis, QUEUE)
    await jobs.add("broken", b"\xff\xff no message")
    await redis.hset(job_key("damaged"), "job", b"\xff\xff")
    await jobs.add("damaged", rec.JobRecord(job_id="damaged").SerializeToString())
    made = await stack.job("after", corpus_dir=stack.chats("good", *GOOD))
    assert made.status.state == pb.JOB_STATE_SUCCEEDED, made.status.error
    letters = {letter.id: letter.reason for letter in await jobs.dead_letters()}
    assert set(letters) == {"broken", "damaged"}
    assert all("is no job that can be read" in reason for reason in letters.values())
