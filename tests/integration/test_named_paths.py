"""Every place where a request names a file of a stage's machine keeps to `source_roots`."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from job_specs import create_job, prepare_spec
from plinth.coordinator.service import build as build_coordinator
from plinth.coordinator.steps import STEP_KINDS
from plinth.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from plinth.shared.errors import InvalidArgument, NotFound, PermissionDenied, PlinthError
from plinth.shared.identity import Principal
from plinth.shared.rpc.channel import open_channel
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext, run_stage
from plinth.tokenizer.service import build as build_tokenizer
from plinth.trainer.service import build as build_trainer
from plinth.v1 import jobs_pb2, jobs_pb2_grpc, runs_pb2, runs_pb2_grpc
from shown_runs import create_run

DOCUMENTS = "".join(
    json.dumps({"text": " ".join(f"word{n * m % 997}" for n in range(400))}) + "\n"
    for m in range(1, 40)
)
PROMPT = json.dumps({"prompt": "Say a word.", "group": "a", "checks": []}) + "\n"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """An open and a closed folder with the same in them, and links from the open one out of it."""
    for name in ("open", "closed"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "documents-0.jsonl").write_text(DOCUMENTS)
        (tmp_path / name / "prompts.jsonl").write_text(PROMPT * 3)
    (tmp_path / "open" / "link").symlink_to(tmp_path / "closed")
    (tmp_path / "open" / "prompts-link.jsonl").symlink_to(tmp_path / "closed" / "prompts.jsonl")
    mixed = tmp_path / "open" / "mixed" / "train"
    mixed.mkdir(parents=True)
    (mixed / "documents-0.jsonl").symlink_to(tmp_path / "closed" / "train" / "documents-0.jsonl")
    return tmp_path


class Stages:
    """A tokenizer, a trainer and a coordinator, as a key with `jobs` and `runs` reaches them."""

    def __init__(self) -> None:
        self.channels: dict[str, grpc.aio.Channel] = {}

    async def train_tokenizer(self, path: str) -> None:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(self.channels["tokenizer"])
        request = tokenizer_pb2.TrainRequest(corpus=path, name="t", vocab_size=262)
        async for _ in stub.Train(request):
            pass

    async def prepare(self, path: str) -> None:
        """Submits the job and waits for its end: what it reads is only then known."""
        stub = jobs_pb2_grpc.JobServiceStub(self.channels["trainer"])
        spec = jobs_pb2.JobSpec(output_name="text", prepare=prepare_spec(corpus_dir=path))
        job = (await stub.CreateJob(create_job(f"j{secrets.token_hex(4)}", spec))).job
        async for told in stub.WatchJob(jobs_pb2.WatchJobRequest(name=job.name)):
            job = told.job if told.HasField("job") else job
        if job.status.state != jobs_pb2.JOB_STATE_SUCCEEDED:
            assert "source_roots" in job.status.error, job.status.error
            raise PermissionDenied(job.status.error)

    async def submit(self, step: str, run_id: str = "run") -> None:
        stub = runs_pb2_grpc.RunServiceStub(self.channels["coordinator"])
        text = f"{{name: p, steps: {{one: {step}}}}}"
        await stub.CreateRun(create_run(run_id, text))

    async def run_data(self, path: str) -> None:
        await self.submit(f"{{kind: data, corpus_dir: {json.dumps(path)}}}")

    async def run_prompts(self, path: str) -> None:
        file = path if path.endswith(".jsonl") else f"{path}/prompts.jsonl"
        await self.submit(f"{{kind: prompts, file: {json.dumps(file)}, held_out: 1}}")

    async def fork(self, path: str) -> None:
        await self.submit("{kind: data, builtin: stdlib}", "origin")
        stub = runs_pb2_grpc.RunServiceStub(self.channels["coordinator"])
        await stub.ForkRun(
            runs_pb2.ForkRunRequest(
                run_id="fork",
                name="runs/origin",
                from_step="one",
                overrides={"steps.one.corpus_dir": path, "steps.one.builtin": "null"},
            )
        )


@pytest.fixture
async def stages(
    host: Path, tmp_path_factory: pytest.TempPathFactory, redis_server: str, redis_client: object
) -> AsyncIterator[Stages]:
    settings = load_settings(
        data_dir=tmp_path_factory.mktemp("data"),
        redis_url=redis_server,
        trainer={"background": False, "lease_s": 3.0},
        source_roots=[host / "open"],
    )
    made, running = Stages(), []
    who = Principal("t", "k", frozenset({"jobs", "runs"}))
    builds: dict[str, Callable[..., Any]] = {
        "tokenizer": build_tokenizer,
        "trainer": lambda context: build_trainer(context, launcher="processes"),
        "coordinator": build_coordinator,
    }
    for stage, build in builds.items():
        context = await StageContext.open(settings, stage=stage)
        replica = await run_stage(context, build(context))
        running.append((context, replica))
        made.channels[stage] = open_channel(
            replica.address, stage=stage, settings=settings, token=context.token, principal=who
        )
    yield made
    for channel in made.channels.values():
        await channel.close()
    for context, replica in reversed(running):
        await replica.stop(5)
        await context.close()


async def outcome(work: Any) -> type[Exception] | None:
    try:
        await work
    except PlinthError as error:
        print(error.message)
        return type(error)
    return None


PLACES = ("train_tokenizer", "prepare", "run_data", "run_prompts", "fork")


@pytest.mark.parametrize("place", PLACES)
async def test_a_path_outside_is_refused_wherever_it_is_named(
    stages: Stages, host: Path, place: str
) -> None:
    name = getattr(stages, place)
    outside = [
        f"{host}/closed",
        f"{host}/open/../closed",
        f"{host}/open/link",
        f"{host}/nowhere",
        "/etc",
        *((f"{host}/open/prompts-link.jsonl",) if place == "run_prompts" else ()),
        # (a link inside of a folder is found by whoever reads the folder)
        *((f"{host}/open/mixed",) if place in ("train_tokenizer", "prepare") else ()),
    ]
    for path in outside:
        assert await outcome(name(path)) is PermissionDenied, path
    for path in ("open/relative", "~/texts", f"file://{host}/open", "s3://bucket/a"):
        # (without a slash a tokenizer's corpus is an artifact's name)
        assert await outcome(name(path)) in (InvalidArgument, NotFound), path
    if place != "fork":
        inside = f"{host}/open/train" if place == "prepare" else f"{host}/open"
        assert await outcome(name(inside)) is None


def test_every_field_of_a_step_that_is_a_path_is_told() -> None:
    """A new one must be in `paths()`, which is what the coordinator checks."""
    named = {
        (kind, field)
        for kind, step in STEP_KINDS.items()
        for field in step.spec.model_fields
        if re.search(r"(^|_)(dir|file|folder|path|url)s?$", field)
    }
    assert named == {("data", "corpus_dir"), ("prompts", "file")}
    data = STEP_KINDS["data"].spec(kind="data", corpus_dir="/a")
    prompts = STEP_KINDS["prompts"].spec(kind="prompts", file="/b", held_out=1)
    assert (data.paths(), prompts.paths()) == ({"corpus_dir": "/a"}, {"file": "/b"})
