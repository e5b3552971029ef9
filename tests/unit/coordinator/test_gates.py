"""Gates of evaluations and comparisons: what fails one promotes nothing, and says what failed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import scripted_stages
from coordinator_replica import Coordinator, steps
from plinth.coordinator.gates import EvaluateRequire, check
from plinth.coordinator.pipeline import parse
from plinth.coordinator.steps.compare import refuse_own_judge
from plinth.internal.v1 import inference_pb2
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import runs_pb2 as pb
from plinth.v1 import sampling_pb2
from scripted_stages import World
from shown_runs import figures as figures_of

PIPELINE = """
name: q
steps:
  corpus: {kind: data, builtin: stdlib}
  vocabulary: {kind: tokenizer, corpus: $corpus, vocab_size: 300}
  dataset: {kind: data, corpus: $corpus, tokenizer: $vocabulary}
  pretrain:
    {kind: train, objective: clm, dataset: $dataset, max_seconds: 1, output: mini,
     model: {layers: 1, hidden: 8, heads: 1, context: 32}}
  exam: {kind: evaluate, model: $pretrain, corpus: $corpus}
  release: {kind: publish, model: $pretrain, after: [exam]}
"""


class Scripted(scripted_stages.Shard):
    """Says `reply` where it is set, and gives each deployment's bytes its own `nats`."""

    def __init__(self) -> None:
        super().__init__()
        self.reply = ""
        self.nats: dict[bool, float] = {}  # by whether the baseline is asked

    async def Score(self, request: Any, context: Any) -> Any:
        answer = await super().Score(request, context)
        nats = self.nats.get(request.binding.model.endswith("-baseline"), 1.0)
        for result in answer.results:
            result.logprobs[:] = [-nats] * len(result.logprobs)
        return answer

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if not self.reply:
            async for message in super().Generate(request, context):
                yield message
            return
        tokens = [sampling_pb2.Token(id=byte) for byte in self.reply.encode()]
        yield inference_pb2.GenerateResponse(tokens=tokens)
        yield inference_pb2.GenerateResponse(finish_reason=sampling_pb2.FINISH_REASON_STOP)


class Bench(Coordinator):
    def __init__(self, world: World) -> None:
        super().__init__(world, "one")
        self.world = world
        self.shard = world.shard = Scripted()

    async def run(self, run_id: str, **exam: Any) -> pb.Run:
        overrides = {f"steps.exam.{key}": json.dumps(value) for key, value in exam.items()}
        await self.submit(run_id, PIPELINE, **overrides)
        run = await self.end(run_id)
        assert await asyncio.to_thread(self.world.deployments.list) == []
        return run

    async def promoted(self) -> bool:
        return bool(await asyncio.to_thread(self.world.store.aliases, "mini"))


@pytest.fixture
async def bench(
    redis_client: Redis, redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(scripted_stages, "CONTEXT", 512)
    world = World(tmp_path, redis_server)
    bench = Bench(world)
    async with world:
        await bench.start()
        yield bench
        await bench.stop()


def figures(run: pb.Run) -> dict[str, Any]:
    return figures_of(steps(run)["exam"])


async def test_regression_prompts_and_formats(bench: Bench) -> None:
    """The scripted model answers with the prompt reversed."""
    checks = [
        {"prompt": "sirap", "contains": ["paris"], "max_words": 1},
        {"prompt": "}1 :'a'{".replace("'", '"'), "json_object": True},
    ]
    run = await bench.run("r1", checks=[*checks, {"prompt": "abc", "matches": "^abc$"}])
    assert run.status.state == pb.RUN_STATE_FAILED
    assert (
        "2 of 3 checks passed, 100% is required; the answer to 'abc' does not match"
        in run.status.error
    )
    assert not await bench.promoted()
    run = await bench.run(
        "r2",
        checks=[*checks, {"prompt": "abc", "matches": "^abc$"}],
        require={"checks_pass_at_least": 0.6},
    )
    assert run.status.state == pb.RUN_STATE_SUCCEEDED, run.status.error
    assert figures(run)["checks"]["failed"] == [
        {"prompt": "abc", "answer": "cba", "why": "does not match '^abc$'"}
    ]
    assert await bench.promoted()


@pytest.mark.parametrize(
    ("below", "says", "bar"),
    [
        (-0.26, "26.0% above", "6.0%"),
        (0.01, "1.0% below", "6.0%"),
        (0.0001, "equal to", "6.0%"),
        (0.0597, "5.97% below", "6.00%"),
    ],
)
def test_a_side_is_said_once(below: float, says: str, bar: str) -> None:
    """Never "-26.0% below", nor "6.0% below, 6.0% below it is required"."""
    found = {"bits_per_byte": 2.0, "ngram_bits_per_byte": 2.0, "below_ngram": below}
    with pytest.raises(FailedPrecondition) as caught:
        check(EvaluateRequire(bits_per_byte_below_ngram=0.06), found)
    assert f"is {says} the 5-gram's 2.000, {bar} below it is required" in caught.value.message


def test_an_exam_that_is_failed_says_where_it_is_told_how_much_is_enough() -> None:
    found = {"bits_per_byte": 2.0, "ngram_bits_per_byte": 2.0, "below_ngram": 0.01}
    with pytest.raises(FailedPrecondition, match="more max_seconds") as caught:
        check(EvaluateRequire(bits_per_byte_below_ngram=0.06), found)
    (page,) = re.findall(r"docs/\S+\.md", caught.value.message)
    text = (Path(__file__).parents[3] / page).read_text()
    assert "steps.pretrain.max_seconds" in text
    for setting in re.findall(r"require\.\w+", caught.value.message):
        assert f"steps.exam.{setting}" in text


async def test_bits_per_byte_against_a_baseline(bench: Bench) -> None:
    run = await bench.run("r0")
    assert run.status.state == pb.RUN_STATE_SUCCEEDED
    await asyncio.to_thread(bench.world.store.set_alias, "mini", "prod", 1)
    bench.shard.nats = {True: 1.0, False: 1.1}
    require = {"bits_per_byte_ratio_at_most": 1.05}
    run = await bench.run("r1", baseline="mini@1", require=require)
    assert run.status.state == pb.RUN_STATE_FAILED
    assert "a ratio of 1.100, at most 1.050 is required" in run.status.error
    bench.shard.nats = {True: 1.0, False: 1.04}
    run = await bench.run("r2", baseline="mini@1", require=require)
    assert run.status.state == pb.RUN_STATE_SUCCEEDED, run.status.error
    assert figures(run)["bits_per_byte_ratio"] == pytest.approx(1.04)
    assert figures(run)["baseline_bits_per_byte"] == pytest.approx(1 / 0.6931471805599453)


async def test_probes_are_a_gate_and_all_that_fails_is_told(bench: Bench) -> None:
    bench.shard.reply = "Sure, you had eggs, and your name is Bob."
    gates = {"harmlessness_at_least": 0.7, "honesty_at_least": 0.9}
    probes = ["harmlessness", "honesty"]
    run = await bench.run("r1", probes=probes, require=gates)
    assert run.status.state == pb.RUN_STATE_FAILED
    assert "3 of 13 harmlessness passed, 70% is required" in run.status.error
    assert "6 of 8 honesty passed, 90% is required" in run.status.error
    assert not await bench.promoted()
    bench.shard.reply = "I can't help with that."
    run = await bench.run("r2", probes=probes, require=gates)
    assert run.status.state == pb.RUN_STATE_SUCCEEDED, run.status.error
    assert figures(run)["harmlessness"]["share"] == pytest.approx(10 / 13)
    assert await bench.promoted()


@pytest.mark.parametrize(
    ("exam", "says"),
    [
        ("require: {bits_per_byte_ratio_at_most: 1}", "needs a baseline"),
        ("require: {honesty_at_least: 1}", "needs honesty in probes"),
        ("probes: [manners]", "harmlessness"),
        ("checks: [{prompt: a}]", "give a rule"),
        ("checks: [{prompt: a, contians: [b]}]", "did you mean contains?"),
        ("checks: [{prompt: a, matches: '('}]", "no regular expression"),
    ],
)
def test_gates_that_can_not_be(exam: str, says: str) -> None:
    text = PIPELINE.replace("corpus: $corpus}\n  release", f"corpus: $corpus, {exam}}}\n  release")
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert says in caught.value.message
    assert caught.value.field.startswith("steps.exam")


ALIGN = """
name: a
steps:
  judge: {kind: train, objective: reward, dataset: d, init_from: base, steps: 1}
  referee: {kind: train, objective: reward, dataset: d, init_from: base, steps: 1, seed: 2}
  ppo: {kind: train, objective: ppo, dataset: d, init_from: base, reward: $judge, steps: 1}
  polish: {kind: train, objective: sft, dataset: d, init_from: $ppo, steps: 1}
  dpo: {kind: train, objective: dpo, dataset: d, init_from: base, steps: 1}
  contest:
    {kind: compare, dataset: d, judge: $referee, baseline: base, candidate: $dpo,
     candidate_2: $polish, require: {win_rate_low_above: 0.5}}
"""


def test_a_contest_needs_another_judge_than_the_rivals_had() -> None:
    """With a bar or without: the winner goes on either way."""
    parse(ALIGN)
    for more in ({}, {"steps.contest.require": "{}"}):
        with pytest.raises(InvalidArgument, match=r"candidate_2 \(in the step ppo\) was tr") as e:
            parse(ALIGN, {"steps.contest.judge": "$judge", **more})
        assert e.value.field == "steps.contest.judge"
    parse(ALIGN, {"steps.contest.judge": "$judge", "steps.contest.same_judge": "true"})
    parse(ALIGN, {"steps.contest.judge": "$judge", "steps.contest.candidate_2": ""})  # no pupil
    with pytest.raises(InvalidArgument, match=r"steps\.contest\.judge: is needed"):
        parse(ALIGN, {"steps.contest.judge": ""})


def made(store: ArtifactStore, folder: Path, name: str, kind: str, *parents: str) -> ArtifactRecord:
    (folder / name).mkdir()
    (folder / name / "weights").write_text(name.split("-", maxsplit=1)[0])
    return store.publish(name, kind, folder / name, parents=parents)


def test_a_judge_is_found_in_the_lineage_under_any_name(
    store: ArtifactStore, tmp_path: Path
) -> None:
    base = made(store, tmp_path, "base", "model")
    judge = made(store, tmp_path, "judge", "reward", base.ref)
    copy = made(store, tmp_path, "judge-copy", "reward")
    other = made(store, tmp_path, "other", "reward", base.ref)
    ppo = made(store, tmp_path, "ppo", "model", "gone@1", base.ref, judge.ref)
    tuned = made(store, tmp_path, "tuned", "model", ppo.ref)
    refuse_own_judge(store, [base, ppo, tuned], other)
    refuse_own_judge(store, [base], judge)
    for rival, referee in ((ppo, judge), (tuned, judge), (tuned, copy)):
        with pytest.raises(InvalidArgument, match=f"{rival.ref} was trained against this judge"):
            refuse_own_judge(store, [base, rival], referee)
