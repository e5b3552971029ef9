"""A fork takes over what was finished, does the rest anew, and says what it can't."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coordinator_replica import Coordinator, states
from patience import PATIENCE_S
from plinth.shared.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from plinth.v1 import runs_pb2 as pb
from scripted_stages import World
from shown_runs import made

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


class Forker(Coordinator):
    def __init__(self, world: World) -> None:
        super().__init__(world, "one")
        self.world = world

    async def submit_all(self, run_id: str = "r1") -> None:
        await self.submit(run_id, PIPELINE)

    async def forked(self, run_id: str, from_step: str, source: str = "r1", **sets: str) -> pb.Run:
        return await self.fork(
            pb.ForkRunRequest(
                run_id=run_id,
                name=f"runs/{source}",
                from_step=from_step,
                overrides={key.replace("__", "."): value for key, value in sets.items()},
            )
        )


@pytest.fixture
async def forker(redis_client: Redis, redis_server: str, tmp_path: Path) -> AsyncIterator[Forker]:
    async with World(tmp_path, redis_server) as world:
        forker = Forker(world)
        await forker.start()
        yield forker
        await forker.stop()


def outputs(run: pb.Run) -> dict[str, str]:
    return {step.step_id: made(step) for step in run.status.steps}


async def test_the_rest_is_done_with_other_settings(forker: Forker) -> None:
    await forker.submit_all()
    first = await forker.end("r1")
    jobs = len(forker.world.trainer.jobs)
    begun = await forker.forked("f1", "tune", steps__tune__learning_rate="1e-5")
    assert states(begun) == ["REUSED"] * 4 + ["PENDING"] * 2
    run = await forker.end("f1")
    # The scripted trainer makes the same model at any learning rate; the job is another one.
    assert states(run)[:5] == ["REUSED"] * 4 + ["SUCCEEDED"]
    assert (run.status.forked_from, run.status.forked_from_step) == ("runs/r1", "tune")
    assert len(forker.world.trainer.jobs) == jobs + 1
    job = forker.world.trainer.jobs[run.status.steps[4].job.removeprefix("jobs/")]
    assert job.spec.train.learning_rate == pytest.approx(1e-5)
    assert job.spec.train.init_from == "mini@1"
    assert run.status.steps[0].detail == "taken over from run r1"
    assert outputs(run) == outputs(first)
    digests = [[step.input_digest for step in one.status.steps[:4]] for one in (run, first)]
    assert digests[0] == digests[1]
    # Asked again it is the same run; under that id there is no other.
    again = await forker.forked("f1", "tune", steps__tune__learning_rate="1e-5")
    assert again.status.revision == run.status.revision
    for step in ("tune", "release"):
        with pytest.raises(AlreadyExists):
            await forker.forked("f1", step)
    # A fork can be forked.
    assert (await forker.forked("f2", "release", source="f1")).status.forked_from == "runs/f1"
    assert states(await forker.end("f2"))[:5] == ["REUSED"] * 5


async def test_a_failed_run_goes_on_from_where_it_failed(forker: Forker) -> None:
    forker.world.trainer.failures["q-tune"] = "out of luck"
    await forker.submit_all()
    assert states(await forker.end("r1"))[4:] == ["FAILED", "CANCELLED"]
    forker.world.trainer.failures.clear()
    await forker.forked("f1", "tune", steps__tune__learning_rate="1e-5")
    assert states(await forker.end("f1")) == ["REUSED"] * 4 + ["SUCCEEDED"] * 2


async def test_what_can_not_be_forked(forker: Forker) -> None:
    forker.world.trainer.gates["mini"] = asyncio.Event()
    await forker.submit_all()
    async with asyncio.timeout(PATIENCE_S):
        await forker.world.trainer.training.wait()
    with pytest.raises(InvalidArgument, match="no step 'tun'; did you mean tune"):
        await forker.forked("f1", "tun")
    with pytest.raises(FailedPrecondition, match="needs the step pretrain, which is running in"):
        await forker.forked("f1", "tune")
    with pytest.raises(FailedPrecondition, match="needs the step pretrain"):
        await forker.forked("f1", "release")
    with pytest.raises(InvalidArgument, match="fork from vocabulary to change it") as caught:
        await forker.forked("f1", "pretrain", steps__vocabulary__vocab_size="400")
    assert caught.value.field == "steps.vocabulary"
    with pytest.raises(NotFound):
        await forker.forked("f1", "pretrain", source="nobody")
    with pytest.raises(InvalidArgument, match="run_id"):
        await forker.forked("a/b", "pretrain")
    with pytest.raises(InvalidArgument, match="learning_rate"):
        await forker.forked("f1", "pretrain", steps__pretrain__learnin_rate="1")
    forker.world.trainer.gates["mini"].set()
    await forker.end("r1")


async def test_an_artifact_that_is_gone_is_told(forker: Forker) -> None:
    await forker.submit_all()
    await forker.end("r1")
    store = forker.world.store
    root = Path(store.url.removeprefix("file://"))
    shutil.rmtree(root / "artifacts" / "q-dataset")
    fresh = Forker(forker.world)  # what was read is kept by a process
    try:
        with pytest.raises(FailedPrecondition, match="q-dataset@1, which the step dataset made"):
            await fresh.forked("f1", "tune")
    finally:
        await fresh._context.clients.close()
        await fresh._context.redis.aclose()
