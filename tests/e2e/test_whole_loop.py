"""The whole loop through the gRPC API: live answers → two annotators → pairs → DPO → gate →
canary → promotion → another answer, whose weights lead back to the pairs.

The model is tiny and talks nonsense; what its users dislike is the letter e. The way is real: every
stage, every weight, every request. Nothing here looks behind it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

from loop_people import (
    LIVE,
    Answer,
    PlatformClient,
    Traffic,
    client_of,
    dislike,
    exported,
    judge_all,
    live_tasks,
    seconds_of,
    steps,
    with_traffic,
)
from plinth.shared.api.structs import plain_values
from plinth.v1 import artifacts_pb2
from plinth.v1 import runs_pb2 as pb
from real_stack import RealStack
from shown_runs import figures as figures_of
from shown_runs import made

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FIRST_MODEL = """
name: first
steps:
  text: {kind: data, builtin: stdlib, max_bytes: 400_000, validation_fraction: 0.05}
  vocabulary: {kind: tokenizer, corpus: $text, vocab_size: 512}
  dataset: {kind: data, corpus: $text, tokenizer: $vocabulary}
  base:
    kind: train
    objective: clm
    dataset: $dataset
    model: {family: llama, layers: 2, hidden: 64, heads: 2, context: 256, tie_embeddings: true}
    batch_size: 4
    steps: 120
    learning_rate: 3e-3
  questions: {kind: data, builtin: stdlib-instruct, max_bytes: 300_000}
  conversations: {kind: data, corpus: $questions, tokenizer: $vocabulary}
  tuned:
    kind: train
    objective: sft
    dataset: $conversations
    init_from: $base
    batch_size: 8
    steps: 60
    learning_rate: 2e-3
    output: chat
  release: {kind: publish, model: $tuned, alias: prod}
  online: {kind: serve, model: $release, name: chat, shards: 1}
"""
BETTER_MODEL = """
name: loop
steps:
  pairs:
    kind: preferences
    collection: live
    sources: [human]
    at_least: 96
    validation_fraction: 0.1
  dataset: {kind: data, corpus: $pairs, tokenizer: "chat:prod"}
  aligned:
    kind: train
    objective: dpo
    dataset: $dataset
    init_from: "chat:prod"
    batch_size: 8
    steps: 48
    learning_rate: 1e-3
    pairs: {beta: 0.1, likelihood_weight: 0.2}
    output: chat
  exam:
    kind: evaluate
    model: $aligned
    baseline: "chat:prod"
    corpus: first-text
    max_bytes: 8_000
    prompts: ["What does os.path.join do?"]
    max_tokens: 24
    require: {bits_per_byte_ratio_at_most: 1.25}
  trial:
    kind: canary
    model: $aligned
    name: chat
    share: 0.5
    seconds: 600
    alias: prod
    after: [exam]
    require:
      error_share_above_at_most: 0.2
      ttft_p95_ratio_at_most: null # other work on this machine would decide it
      good_share_below_at_most: 0.0
      verdicts: 30
"""
TASKS = 96


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    """A stack that serves nothing yet, and keeps every chat with consent."""
    stack = RealStack.up(
        tmp_path_factory.mktemp("loop"), shards=0, gateway__preference_sampling_rate=1.0
    )
    yield stack
    stack.down()


async def test_from_live_answers_to_better_weights(bare: RealStack) -> None:
    async with client_of(bare) as client:
        await client.submit("first", FIRST_MODEL)
        first = await client.end("first")
        assert first.status.state == pb.RUN_STATE_SUCCEEDED, first.status.error
        assert (await client.artifact("chat:prod")).version == 1

        answers = await live_tasks(client, TASKS)
        assert {answer.revision for answer in answers} == {"chat@1"}
        tally = await judge_all(client)
        assert len(tally.judged) == TASKS
        assert set(tally.judged.values()) == {1}
        assert set(tally.by) == {"ann", "bob"}
        assert tally.together > 0  # they did work at the same time
        pairs = await exported(client)
        assert len(pairs) == TASKS
        assert all((dislike(good), good) < (dislike(bad), bad) for good, bad in pairs)
        seen = {answer.text for answer in answers}
        assert all(seen & set(pair) for pair in pairs)

        before = await client.said()
        assert texts(before) == texts(await client.said())
        traffic = Traffic(client, bar=statistics.median(dislikes(before)))
        await client.submit("loop", BETTER_MODEL)
        run = await with_traffic(client, "loop", traffic)
        print(f"first: {seconds_of(first)}\nloop: {seconds_of(run)}")
        assert run.status.state == pb.RUN_STATE_SUCCEEDED, run.status.error
        await promoted(client, run, before, traffic)
        await leads_back(client, run)
        await refused(client)


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def dislikes(answers: list[Answer]) -> list[int]:
    return [dislike(answer.text) for answer in answers]


async def promoted(
    client: PlatformClient, run: pb.Run, before: list[Answer], traffic: Traffic
) -> None:
    """Old and new weights shared the traffic; now the new ones answer under the old name, and
    what they say is another thing, and liked more."""
    figures = figures_of(steps(run)["trial"])
    assert abs(figures["given"] - figures["asked"] / 2) <= 1
    assert figures["canary"]["good"] + figures["canary"]["bad"] >= 30
    assert set(traffic.answers) == {"chat@1", "chat@2"}
    shares = {revision: traffic.good[revision] / n for revision, n in traffic.answers.items()}
    print(f"liked: {shares}, of {traffic.answers}")
    assert made(steps(run)["trial"]) == "chat@2"
    assert (await client.artifact("chat:prod")).version == 2
    assert await client.served() == {"chat": "chat@2"}
    after = await client.said()
    assert {answer.revision for answer in before} == {"chat@1"}
    assert {answer.revision for answer in after} == {"chat@2"}
    assert after[0].text != before[0].text
    print(f"{before[0].text!r} became {after[0].text!r}")
    print(f"disliked {statistics.mean(dislikes(before))}, then {statistics.mean(dislikes(after))}")
    assert statistics.mean(dislikes(after)) < statistics.mean(dislikes(before))


async def leads_back(client: PlatformClient, run: pb.Run) -> None:
    """From the weights that answer, by their parents, to what people preferred."""
    lineage = await client.lineage("chat@2")
    judged = lineage[made(steps(run)["pairs"])]
    assert judged.kind == artifacts_pb2.ARTIFACT_KIND_CORPUS
    config, metrics = (
        plain_values(part) for part in (judged.manifest.config, judged.manifest.metrics)
    )
    assert f"collections/{config['collection']}" == LIVE
    assert config["sources"] == ["human"]
    assert metrics["pairs"] == TASKS
    assert metrics["models"] == ["chat@1"]
    assert {"chat@1", "first-vocabulary@1", "first-text@1"} <= set(lineage)


async def refused(client: PlatformClient) -> None:
    """The same loop with a learning rate that ruins the weights stops at its gate."""
    ask = pb.ForkRunRequest(
        run_id="ruined",
        name="runs/loop",
        from_step="aligned",
        overrides={
            "steps.aligned.learning_rate": "1.0",
            "steps.aligned.pairs.max_chosen_drop": "0",  # else the training itself is refused
        },
    )
    await client.runs.ForkRun(ask, metadata=client.metadata)
    run = await client.end("ruined")
    print(f"ruined: {seconds_of(run)} {run.status.error}")
    assert run.status.state == pb.RUN_STATE_FAILED
    assert "at most 1.250 is required" in run.status.error
    assert made(steps(run)["aligned"]) == "chat@3"
    trial = steps(run)["trial"]
    assert (trial.state, trial.HasField("start_time")) == (pb.STEP_STATE_CANCELLED, False)
    assert (await client.artifact("chat:prod")).version == 2
    assert list((await client.artifact("chat@3")).aliases) == []
    assert await client.served() == {"chat": "chat@2"}
    assert {answer.revision for answer in await client.said()} == {"chat@2"}
