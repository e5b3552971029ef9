"""The steps `sample` and `verify` by the real tokenizer, reward and inference stages: the answers
are an engine's on the same weights, and the figures those of a naive count."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from answer_text import answer_text
from checkpoints import byte_tokenizer, random_llama
from patience import PATIENCE_S
from plinth.coordinator.respondent import _seed
from plinth.coordinator.steps.contract import StepOutcome, Tools, Work
from plinth.coordinator.steps.sample import SAMPLES, SampleSpec, SampleStep
from plinth.coordinator.steps.verify import VerifySpec, VerifyStep
from plinth.engine.request import Sampling
from plinth.engine.weight_set import engine_over
from plinth.inference import service as inference
from plinth.models.weights import load_decoder
from plinth.reward import service as reward
from plinth.shared.canary import Canaries
from plinth.shared.errors import FailedPrecondition
from plinth.shared.prompt_set import Prompt, read_prompts, write_prompts
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import load_settings
from plinth.shared.source_roots import SourceRoots
from plinth.tokenizer import service as tokenizer
from plinth.trainer.data.selected import of_prompts, selected
from plinth.trainer.policy.rollouts import EngineSampler, Order
from stage_replicas import Stages

NO_E = ({"kind": "contains", "phrases": ["e"], "which": "none"},)
PROMPTS = [Prompt(f"Question {n}?", "odd" if n % 2 else "even", NO_E) for n in range(6)]


def model(folder: Path, seed: int) -> Path:
    random_llama(folder, vocab_size=259, context=128, layers=2, seed=seed)
    return byte_tokenizer(folder)


@pytest.fixture
async def tools(redis_server: str, redis_client: object, tmp_path: Path) -> AsyncIterator[Tools]:
    settings = load_settings(
        data_dir=tmp_path, redis_url=redis_server, engine={"kv_cache_bytes": 1 << 24}
    )
    stages = Stages(settings)
    context = await stages.add("tokenizer", tokenizer.build)
    store = context.store
    for name, seed in (("first", 1), ("second", 2)):
        await asyncio.to_thread(store.publish, name, "model", model(tmp_path / name, seed))
    (tmp_path / "prompts").mkdir()
    for split in ("train", "validation"):
        write_prompts(PROMPTS, tmp_path / "prompts" / f"{split}.jsonl")
    await asyncio.to_thread(store.publish, "prompts", "prompts", tmp_path / "prompts")
    await stages.add("reward", reward.build)
    await stages.add("inference", inference.build, model="chat", artifact="first@1")
    records = DeploymentRecords(store)
    reconciling = asyncio.create_task(stages.serve(records))
    canaries = Canaries(context.redis)
    yield Tools(
        store, records, context.registry, context.clients, context.redis, canaries, SourceRoots(())
    )
    stages.over.set()
    await reconciling
    await stages.stop()


def work(tools: Tools, spec: Any) -> Work:
    inputs = {field: tools.store.get(ref) for field, ref in spec.inputs().items()}
    return Work("run-1", "step", spec, inputs, "sha256:" + "ab" * 32, "out")


async def done(step: Any, asked: Work, tools: Tools) -> StepOutcome:
    async with asyncio.timeout(PATIENCE_S):
        events = [event async for event in step.execute(asked, tools)]
    assert isinstance(events[-1], StepOutcome)
    return events[-1]


async def test_samples_are_an_engines_and_become_pairs(tools: Tools, tmp_path: Path) -> None:
    spec = SampleSpec(
        kind="sample", model="second", prompts="prompts", samples=3, max_tokens=12, seed=7
    )
    outcome = await done(SampleStep(), work(tools, spec), tools)
    folder = tools.store.fetch(outcome.output)
    lines = [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [p.text for p in PROMPTS for _ in range(3)]
    for line in lines:
        assert line["reward"] == float("e" not in line["answer"].lower()), line
    assert outcome.metrics["reward"] == pytest.approx(np.mean([line["reward"] for line in lines]))
    # The same by an engine of this process, though no shard serves this model.

    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "second")
    sampler = EngineSampler(
        engine_over(load_decoder(tmp_path / "second"), running=8, waiting=64, device="cpu")
    )
    orders = []
    for number, prompt in enumerate(read_prompts(tmp_path / "prompts" / "train.jsonl")):
        chat = [{"role": "user", "content": prompt.text}]
        text = hf.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tuple(hf.encode(text, add_special_tokens=False))
        orders.append(Order(number, ids, 3, _seed(7, number)))
    here = sampler.sample(orders, Sampling(1.0, max_tokens=12, stop_ids=frozenset({2})))
    texts = [answer_text(hf, one.response) for one in here]
    assert [line["answer"] for line in lines] == texts
    # And the trainer makes pairs of them: one that passed against one that did not.
    rewards = {(line["prompt"], line["answer"]): line["reward"] for line in lines}
    said = [np.mean(one.raw_logprobs) for one in here]
    assert [line["logprob"] for line in lines] == pytest.approx(said)
    for document in selected(folder, "extremes", 0.5, "likely", "out@1", of_prompts()):
        prompt, chosen = document.messages[-2][1], document.messages[-1][1]
        assert rewards[prompt, chosen] == 1
        assert rewards[prompt, document.rejected or ""] == 0


async def test_the_gate_counts_what_passes_and_asks_the_baseline_about_language(
    tools: Tools, tmp_path: Path
) -> None:
    fields = {"kind": "verify", "model": "second", "baseline": "first", "prompts": "prompts"}
    spec = VerifySpec(**fields, max_tokens=12, temperature=0.9)
    outcome = await done(VerifyStep(), work(tools, spec), tools)
    assert outcome.output == "second@1"
    sides = outcome.metrics["sides"]
    for side in ("baseline", "model"):
        passed = [sides[side]["groups"][name] for name in ("even", "odd")]
        assert sides[side]["pass_rate"] == pytest.approx(np.mean(passed))
    # What was sampled by the baseline is scored by it as it was when it was sampled.
    same = VerifySpec(**{**fields, "model": "first"}, max_tokens=12, temperature=0.9)
    twin = (await done(VerifyStep(), work(tools, same), tools)).metrics["sides"]
    assert twin["model"]["logprob"] == pytest.approx(twin["baseline"]["logprob"], abs=1e-4)
    assert twin["model"]["pass_rate"] == twin["baseline"]["pass_rate"]
    assert await asyncio.to_thread(tools.deployments.list) == []
    strict = VerifySpec(**fields, max_tokens=12, require={"above_baseline": True})
    with pytest.raises(FailedPrecondition, match="nothing is promoted"):
        await done(VerifyStep(), work(tools, strict), tools)
