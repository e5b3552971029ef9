"""The engine on an accelerator: transformers' answers, and no growth under load.

Needs torch, transformers and pytest alone, so that `ops/bench/gpu.sh` can run it anywhere.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers

import checkpoints
from plinth.engine.engine import Engine
from plinth.engine.request import Binding, Request, Sampling
from plinth.engine.runner import Runner
from plinth.engine.scheduler import Limits
from plinth.kernels.paged import KvCache
from plinth.models.weights import load_decoder

pytestmark = pytest.mark.gpu
NEAR_TIE = 1e-5


def engine(folder: Path, device: str) -> Engine:
    decoder = load_decoder(folder, device=device).eval().requires_grad_(False)
    cache = KvCache(decoder.states, 256, 16, device=device)
    return Engine(Runner(decoder, cache), Limits(512, 64, 256, decoder.config.context))


def complete(engine: Engine, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), tuple(prompt), Binding(""), sampling))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.busy:
        for event in engine.step():
            answers[int(event.request_id)] += [token.id for token in event.tokens]
    return answers


@pytest.mark.parametrize("make", [checkpoints.random_llama, checkpoints.random_gpt2])
def test_greedy_equals_transformers(tmp_path, make, device) -> None:
    folder = make(tmp_path / "model")
    dice = random.Random(5)
    prompts = [[dice.randrange(3, 300) for _ in range(dice.randrange(1, 60))] for _ in range(24)]
    answers = complete(engine(folder, device), prompts, Sampling(temperature=0, max_tokens=16))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().to(device)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():  # teacher-forced: each choice is the reference's best, or a tie
            logits = model(torch.tensor([prompt + answer], device=device)).logits[0]
        for i, chosen in enumerate(answer):
            row = logits[len(prompt) - 1 + i]
            assert float(row.max() - row[chosen]) <= NEAR_TIE


@pytest.mark.usefixtures("cpu_kernels")
def test_memory_is_flat_under_load(tmp_path, device) -> None:
    if device == "cpu":
        pytest.skip("asks the GPU's allocator")
    made = engine(checkpoints.random_llama(tmp_path / "model"), device)
    dice = random.Random(6)

    def load() -> int:
        prompts = [[dice.randrange(3, 300) for _ in range(40)] for _ in range(32)]
        complete(made, prompts, Sampling(temperature=1.0, max_tokens=24, seed=1))
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    first = load()
    assert max(load() for _ in range(5)) <= first + (1 << 20)
    assert made.pool.live == 0
