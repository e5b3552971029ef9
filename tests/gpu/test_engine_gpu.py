"""The engine on an accelerator: transformers' answers, no growth under load, and a killed shard."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
import transformers

import checkpoints
from plinth.engine.engine import Engine
from plinth.engine.request import Binding, Request, Sampling
from plinth.inference.loading import load_engine
from plinth.shared.settings_sections import EngineSettings
from real_stack import RealStack, until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]
NEAR_TIE = 1e-5


def engine(folder: Path, **settings: object) -> Engine:
    made = EngineSettings.model_validate({"device": "cuda", "kv_cache_bytes": 1 << 24, **settings})
    return load_engine(folder, made).engine


def complete(engine: Engine, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), tuple(prompt), Binding(""), sampling))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.busy:
        for event in engine.step():
            answers[int(event.request_id)] += [token.id for token in event.tokens]
    return answers


@pytest.mark.parametrize("make", [checkpoints.random_llama, checkpoints.random_gpt2])
def test_greedy_equals_transformers(tmp_path, make) -> None:
    folder = make(tmp_path / "model")
    dice = random.Random(5)
    prompts = [[dice.randrange(3, 300) for _ in range(dice.randrange(1, 60))] for _ in range(24)]
    answers = complete(engine(folder), prompts, Sampling(temperature=0, max_tokens=16))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().to("cuda")
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():  # teacher-forced: each choice is the reference's best, or a tie
            logits = model(torch.tensor([prompt + answer], device="cuda")).logits[0]
        for i, chosen in enumerate(answer):
            row = logits[len(prompt) - 1 + i]
            assert float(row.max() - row[chosen]) <= NEAR_TIE


def test_memory_is_flat_under_load(tmp_path) -> None:
    made = engine(checkpoints.random_llama(tmp_path / "model"))
    dice = random.Random(6)

    def load() -> int:
        prompts = [[dice.randrange(3, 300) for _ in range(40)] for _ in range(32)]
        complete(made, prompts, Sampling(temperature=1.0, max_tokens=24, seed=1))
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    first = load()
    assert max(load() for _ in range(5)) <= first + (1 << 20)
    assert made.pool.live == 0


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RealStack]:
    stack = RealStack.up(tmp_path / "stack", shards=1, engine__device="cuda")
    yield stack
    stack.down()


def test_a_killed_shard_serves_again(served: RealStack) -> None:
    client = openai.OpenAI(api_key=served.key, base_url=f"{served.rest}/v1")

    def capital() -> str:
        answer = client.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    before = capital()
    assert "Paris" in before
    (old,) = served.replicas("inference")
    served.kill("ServeReplica:inference")
    until(lambda: [r for r in served.replicas("inference") if r.id != old.id], "a successor")
    assert capital() == before
