"""A fork takes over what was finished, does the rest anew, and says what it can't."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.coordinator import service
from plinth.coordinator.run_service import RunServicer
from plinth.shared.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from plinth.v1 import runs_pb2 as pb
from scripted_stages import Caller, World

PIPELINE = """
name: q
steps:
  corpus: {kind: data, builtin: stdlib}
  vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 300}
  dataset: {kind: data, corpus: $corpus, tokenizer: $vocabulary}
  pretrain:
    {kind: train, objective: clm, dataset: $dataset, max_seconds: 1, output: mini,
     model: {layers: 1, hidden: 8, heads: 1, context: 32}}
  tune: {kind: train, objective: sft, dataset: $dataset, init_from: $pretrain, max_seconds: 1}
  release: {kind: publish, model: $tune}
"""


class Forker:
    def __init__(self, world: World) -> None:
        self.world = world
        self.context = world.context("one")
        self.front = service.build(self.context)
        self.rpc: Any = RunServicer(self.front._records, self.front._feed, self.front._tools)

    async def submit(self, run_id: str = "r1") -> None:
        request = pb.SubmitRunRequest(run_id=run_id, pipeline_yaml=PIPELINE)
        await self.rpc.SubmitRun(request, None)

    async def fork(self, run_id: str, from_step: str, source: str = "r1", **sets: str) -> pb.Run:
        request = pb.ForkRunRequest(
            run_id=run_id,
            source_run_id=source,
            from_step=from_step,
            overrides={key.replace("__", "."): value for key, value in sets.items()},
        )
        return (await self.rpc.ForkRun(request, None)).run

    async def end(self, run_id: str) -> pb.Run:
        run = pb.Run()
        async with asyncio.timeout(PATIENCE_S):
            async for message in self.rpc.WatchRun(pb.WatchRunRequest(run_id=run_id), Caller()):
                run = message.run
        return run


@pytest.fixture
async def forker(redis_client: Redis, redis_server: str, tmp_path: Path) -> AsyncIterator[Forker]:
    async with World(tmp_path, redis_server) as world:
        forker = Forker(world)
        await forker.front.start()
        yield forker
        await forker.front.drain(PATIENCE_S)
        await forker.context.clients.close()
        await forker.context.redis.aclose()


def states(run: pb.Run) -> list[str]:
    return [pb.StepState.Name(step.state).removeprefix("STEP_STATE_") for step in run.steps]


def outputs(run: pb.Run) -> dict[str, str]:
    return {step.name: step.output for step in run.steps}


async def test_the_rest_is_done_with_other_settings(forker: Forker) -> None:
    await forker.submit()
    first = await forker.end("r1")
    jobs = len(forker.world.trainer.jobs)
    begun = await forker.fork("f1", "tune", steps__tune__learning_rate="1e-5")
    assert states(begun) == ["REUSED"] * 4 + ["PENDING"] * 2
    run = await forker.end("f1")
    # The scripted trainer makes the same model at any learning rate; the job is another one.
    assert states(run)[:5] == ["REUSED"] * 4 + ["SUCCEEDED"]
    assert (run.forked_from, run.forked_at) == ("r1", "tune")
    assert len(forker.world.trainer.jobs) == jobs + 1
    job = forker.world.trainer.jobs[run.steps[4].job_id]
    assert job.spec.train.learning_rate == pytest.approx(1e-5)
    assert job.spec.train.init_from == "mini@1"
    assert run.steps[0].detail == "taken over from run r1"
    assert outputs(run) == outputs(first)
    assert [s.input_digest for s in run.steps[:4]] == [s.input_digest for s in first.steps[:4]]
    # Asked again it is the same run; under that id there is no other.
    again = await forker.fork("f1", "tune", steps__tune__learning_rate="1e-5")
    assert again.revision == run.revision
    for step in ("tune", "release"):
        with pytest.raises(AlreadyExists):
            await forker.fork("f1", step)
    # A fork can be forked.
    assert (await forker.fork("f2", "release", source="f1")).forked_from == "f1"
    assert states(await forker.end("f2"))[:5] == ["REUSED"] * 5


async def test_a_failed_run_goes_on_from_where_it_failed(forker: Forker) -> None:
    forker.world.trainer.failures["q-tune"] = "out of luck"
    await forker.submit()
    assert states(await forker.end("r1"))[4:] == ["FAILED", "CANCELLED"]
    forker.world.trainer.failures.clear()
    await forker.fork("f1", "tune", steps__tune__learning_rate="1e-5")
    assert states(await forker.end("f1")) == ["REUSED"] * 4 + ["SUCCEEDED"] * 2


async def test_what_can_not_be_forked(forker: Forker) -> None:
    forker.world.trainer.gates["mini"] = asyncio.Event()
    await forker.submit()
    async with asyncio.timeout(PATIENCE_S):
        await forker.world.trainer.training.wait()
    with pytest.raises(InvalidArgument, match="no step 'tun'; did you mean tune"):
        await forker.fork("f1", "tun")
    with pytest.raises(FailedPrecondition, match="needs the step pretrain, which is running in"):
        await forker.fork("f1", "tune")
    with pytest.raises(FailedPrecondition, match="needs the step pretrain"):
        await forker.fork("f1", "release")
    with pytest.raises(InvalidArgument, match="fork from vocabulary to change it") as caught:
        await forker.fork("f1", "pretrain", steps__vocabulary__vocab_size="400")
    assert caught.value.field == "steps.vocabulary"
    with pytest.raises(NotFound):
        await forker.fork("f1", "pretrain", source="nobody")
    with pytest.raises(InvalidArgument, match="run_id"):
        await forker.fork("a/b", "pretrain")
    with pytest.raises(InvalidArgument, match="learning_rate"):
        await forker.fork("f1", "pretrain", steps__pretrain__learnin_rate="1")
    forker.world.trainer.gates["mini"].set()
    await forker.end("r1")


async def test_an_artifact_that_is_gone_is_told(forker: Forker) -> None:
    await forker.submit()
    await forker.end("r1")
    store = forker.world.store
    root = Path(store.url.removeprefix("file://"))
    shutil.rmtree(root / "artifacts" / "q-dataset")
    fresh = Forker(forker.world)  # what was read is kept by a process
    try:
        with pytest.raises(FailedPrecondition, match="q-dataset@1, which the step dataset made"):
            await fresh.fork("f1", "tune")
    finally:
        await fresh.context.clients.close()
        await fresh.context.redis.aclose()
