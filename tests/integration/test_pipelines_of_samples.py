"""The pipelines that learn from a model's own answers, run whole by the coordinator and the real
stages, on a tiny model: each round samples from the newest model and is held to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from answer_text import answer_text
from checkpoints import byte_tokenizer, random_llama
from patience import PATIENCE_S
from plinth.coordinator import service as coordinator
from plinth.coordinator.respondent import _seed
from plinth.coordinator.steps.sample import SAMPLES
from plinth.engine.request import Sampling
from plinth.engine.weight_set import engine_over
from plinth.inference import service as inference
from plinth.models.weights import load_decoder
from plinth.reward import service as reward
from plinth.shared.prompt_set import read_prompts
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext
from plinth.shared.store import ArtifactStore
from plinth.tokenizer import service as tokenizer
from plinth.trainer import service as trainer
from plinth.trainer.policy.rollouts import EngineSampler, Order
from plinth.v1 import runs_pb2 as pb
from shown_runs import create_run, figures, made
from stage_replicas import Stages

PIPELINES = Path(__file__).parents[2] / "ops" / "pipelines"
AVOIDED = list("abcdefghijklmno")
CONSTRAINT = {
    "name": "letters",
    "ask": "Avoid some.",
    "checks": [{"kind": "contains", "phrases": AVOIDED, "which": "none"}],
}
# What makes the files small enough for this; everything else is as they say.
TINY = {
    "steps.prompts.topics": json.dumps([f"topic {n}" for n in range(22)]),
    "steps.prompts.constraints": json.dumps([CONSTRAINT]),
    "steps.prompts.held_out": "2",
    "steps.gate.max_tokens": "10",
    "steps.gate.require": "null",  # of a random model nothing can be required
}
SAMPLED = {"samples": "4", "max_tokens": "10"}
# One update from the reference itself: DPO's loss is log 2, whatever the pairs are.
TRAINED = {"steps": "1", "batch_size": "8", "sequence_length": "128", "learning_rate": "0.01"}


@pytest.fixture
async def stack(
    redis_server: str, redis_client: object, tmp_path: Path
) -> AsyncIterator[StageContext]:
    settings = load_settings(
        data_dir=tmp_path,
        redis_url=redis_server,
        engine={"kv_cache_bytes": 1 << 24, "policy_kv_cache_bytes": 1 << 24},
        trainer={"background": False, "threads": 1},
    )
    stages = Stages(settings)
    context = await stages.add("tokenizer", tokenizer.build)
    folder = random_llama(tmp_path / "base", vocab_size=259, context=128, layers=2, seed=1)
    await asyncio.to_thread(context.store.publish, "smollm2", "model", byte_tokenizer(folder))
    await stages.add("reward", reward.build)
    await stages.add("inference", inference.build, model="smollm2", artifact="smollm2@1")
    await stages.add("trainer", trainer.build, launcher="processes")
    await stages.add("coordinator", coordinator.build)
    reconciling = asyncio.create_task(stages.serve(DeploymentRecords(context.store)))
    yield context
    stages.over.set()
    await reconciling
    await stages.stop()


async def run(stack: StageContext, name: str, overrides: dict[str, str]) -> dict[str, pb.Step]:
    """The steps of a run that succeeded, by name."""
    stub = await stack.clients.runs()
    text = (PIPELINES / f"{name}.yaml").read_text()
    submit = create_run("r", text, {**TINY, **overrides})
    await stub.CreateRun(submit)
    async with asyncio.timeout(PATIENCE_S):
        watched = stub.WatchRun(pb.WatchRunRequest(name="runs/r"))
        ended = [message.run async for message in watched if message.HasField("run")][-1]
    assert ended.status.state == pb.RUN_STATE_SUCCEEDED, [
        (s.step_id, s.error) for s in ended.status.steps
    ]
    return {step.step_id: step for step in ended.status.steps}


def at(step: str, fields: dict[str, str]) -> dict[str, str]:
    return {f"steps.{step}.{field}": value for field, value in fields.items()}


def lines_of(store: ArtifactStore, reference: str) -> list[dict[str, Any]]:
    text = (store.fetch(reference) / SAMPLES).read_text()
    return [json.loads(line) for line in text.splitlines()]


def sampled_here(model: Path, prompts: Path, seed: int) -> list[str]:
    """What an engine over these weights answers."""
    hf = transformers.AutoTokenizer.from_pretrained(model)
    sampler = EngineSampler(engine_over(load_decoder(model), running=8, waiting=128, device="cpu"))
    orders = []
    for number, prompt in enumerate(read_prompts(prompts / "train.jsonl")):
        chat = [{"role": "user", "content": prompt.text}]
        text = hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tuple(hf.encode(text, add_special_tokens=False))
        orders.append(Order(number, ids, 4, _seed(seed, number)))
    made = sampler.sample(orders, Sampling(0.8, max_tokens=10, stop_ids=frozenset({2})))
    return [answer_text(hf, one.response) for one in made]


async def test_each_round_of_dpo_goes_on_from_the_newest_model(stack: StageContext) -> None:
    overrides = {
        key: value
        for number in (1, 2)
        for key, value in (
            at(f"samples-{number}", SAMPLED)
            | at(f"policy-{number}", TRAINED)
            | at(f"policy-{number}.pairs", {"likelihood_weight": "0"})
        ).items()
    }
    steps = await run(stack, "iterative", overrides)
    store = stack.store
    first, second = (made(steps[f"policy-{number}"]) for number in (1, 2))
    assert made(steps["gate"]) == second
    assert store.get("iterative-policy-2:prod").ref == second
    assert first in store.get(second).manifest["parents"]
    assert first in store.get(made(steps["samples-2"])).manifest["parents"]
    prompts = store.fetch(made(steps["prompts"]))
    models = [store.fetch(name) for name in ("smollm2@1", first, second)]
    weights = [load_file(folder / "model.safetensors") for folder in models]
    for before, after in itertools.pairwise(weights):
        assert any(not torch.equal(before[name], after[name]) for name in before)
    for number, model in ((1, models[0]), (2, models[1])):
        answers = [line["answer"] for line in lines_of(store, made(steps[f"samples-{number}"]))]
        assert answers == await asyncio.to_thread(sampled_here, model, prompts, number)
        # At its first update a policy is its reference, whichever that is: log 2. Held to the
        # model of a round before, it would not be.
        loss = figures(steps[f"policy-{number}"])["loss"]
        assert loss == pytest.approx(math.log(2), abs=1e-4)


async def test_the_best_of_n_are_learned(stack: StageContext) -> None:
    overrides = at("samples", {**SAMPLED, "samples": "2"}) | at("tuned", {**TRAINED, "steps": "8"})
    steps = await run(stack, "best-of-n", overrides)
    store = stack.store
    passed: dict[str, list[str]] = defaultdict(list)
    for line in lines_of(store, made(steps["samples"])):
        if line["answer"].strip() and not set(line["answer"].lower()) & set(AVOIDED):
            passed[line["prompt"]].append(line["answer"])
    assert 4 <= len(passed) < 20  # it is a choice
    kept = [
        json.loads(line)
        for path in sorted(store.fetch(made(steps["best"])).rglob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    chats = {one["messages"][0]["content"]: one["messages"][1]["content"] for one in kept}
    assert chats == {prompt: answers[0] for prompt, answers in passed.items()}
    assert store.get("best-of-n-tuned:prod").ref == made(steps["tuned"]) == made(steps["gate"])
    assert figures(steps["tuned"])["steps"] == 8
