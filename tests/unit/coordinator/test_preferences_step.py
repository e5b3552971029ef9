"""Step "preferences" in whole runs: a snapshot of judgements, once taken, stays the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coordinator_replica import Coordinator
from plinth.coordinator.pipeline import parse
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.specs import make_task
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.v1 import chat_pb2, runs_pb2
from plinth.v1 import preferences_pb2 as pb
from scripted_stages import World
from shown_runs import made

PIPELINES = Path(__file__).parents[3] / "ops" / "pipelines"
PIPELINE = """
name: prefs
steps:
  judged: {kind: preferences, collection: c, at_least: 2}
  vocabulary: {kind: tokenizer, corpus: $judged, vocab_size: 300}
  dataset: {kind: data, corpus: $judged, tokenizer: $vocabulary}
"""


class Running(Coordinator):
    def __init__(self, world: World) -> None:
        super().__init__(world, "one")
        self.world = world

    async def run(self, run_id: str, text: str = PIPELINE) -> runs_pb2.Run:
        await self.submit(run_id, text)
        return await self.end(run_id)


@pytest.fixture
async def running(redis_client: Redis, redis_server: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with World(tmp_path, redis_server) as world:
        running = Running(world)
        await running.start()
        yield running
        await running.stop()


async def judge(redis: Redis, index: int) -> None:
    records = PreferenceRecords(redis, "c")
    spec = pb.PreferenceTaskSpec(
        prompt=[chat_pb2.ChatMessage(role="user", content=f"prompt {index}")],
        responses=[
            pb.PreferenceResponse(response_id=one, text=f"{one} {index}") for one in ("a", "b")
        ],
    )
    await records.create(make_task(spec, "c", "task.spec", task_id=f"t{index}"))
    order = tiers([["a"], ["b"]])
    await records.add(
        rec.JudgementRecord(
            task_id=f"t{index}",
            annotator="rule",
            source=pb.JUDGEMENT_SOURCE_RULE,
            ranking=order,
        )
    )


async def test_from_judgements_to_a_dataset(running: Running, redis_client: Redis) -> None:
    for index in range(3):
        await judge(redis_client, index)
    first = await running.run("r1")
    assert first.status.state == runs_pb2.RUN_STATE_SUCCEEDED, first.status.error
    judged, _, dataset = first.status.steps
    assert made(judged) == "prefs-judged@1"
    assert "prefs-judged@1" in running.world.store.get(made(dataset)).parents
    assert running.world.store.get(made(judged)).manifest["config"]["revision"] == 3
    again = await running.run("r2")
    assert again.status.steps[0].state == runs_pb2.STEP_STATE_REUSED
    assert made(again.status.steps[0]) == "prefs-judged@1"
    await judge(redis_client, 3)
    more = await running.run("r3")
    assert made(more.status.steps[0]) == "prefs-judged@2"
    early = await running.run("r4", PIPELINE.replace("at_least: 2", "up_to: 3"))
    assert made(early.status.steps[0]) == "prefs-judged@1"


async def test_too_few_pairs_end_the_run(running: Running, redis_client: Redis) -> None:
    await judge(redis_client, 0)
    ended = await running.run("r1")
    assert ended.status.state == runs_pb2.RUN_STATE_FAILED
    assert "gives 1 pairs from 1 judgements, 2 are needed" in ended.status.steps[0].error


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_pipelines_that_come_with_plinth_are_valid(path: Path) -> None:
    assert parse(path.read_text()).steps


async def test_a_step_that_is_taken_up_again_reads_the_same(redis_client: Redis) -> None:
    records = PreferenceRecords(redis_client, "c")
    await judge(redis_client, 0)
    assert await records.pinned_revision("job") == 1
    await judge(redis_client, 1)
    assert await records.pinned_revision("job") == 1
    assert await records.pinned_revision("another") == 2
