"""The engine against transformers: same checkpoint, same prompts, same threads, in one process.

Prints one JSON line per result. `ratio` is Plinth's tokens per second over the other's, the median
over rounds in which the two take turns (so that a machine that slows down slows both).

    python ops/bench/engine.py [--rounds 3] [--models smollm2,random] [--work one,many,repeat]

one: a single stream, greedy, against `generate`. many: 32 streams of mixed prompts, against
transformers' continuous batching. repeat: the prompt's text is asked for again with small edits,
with lookup drafts against without (both are Plinth).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from plinth.engine.engine import Engine
from plinth.engine.request import Binding, Request, Sampling
from plinth.inference.loading import load_engine
from plinth.kernels.library import instruction_set
from plinth.models.importer import import_source
from plinth.shared.settings_sections import EngineSettings

Prompts = list[list[int]]


def main() -> None:
    """Measure what was asked for, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="smollm2,random")
    parser.add_argument("--work", default="one,many,repeat")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models.split(","):
            folder = Path(scratch) / name
            _real(folder) if name == "smollm2" else _random(folder)
            for work in options.work.split(","):
                measure(name, folder, work, options.rounds)


def measure(name: str, folder: Path, work: str, rounds: int) -> None:
    """One model and one kind of work: rounds in turns, then the medians."""
    engine = load_engine(folder, EngineSettings(speculation="off")).engine
    prompts, new = _prompts(work, folder, engine.runner.decoder.config.vocab_size)
    sampling = Sampling(temperature=0, max_tokens=new)
    sides: dict[str, Callable[[], int]] = {"plinth": lambda: _serve(engine, prompts, sampling)}
    if work == "repeat":
        drafted = replace(sampling, speculation="lookup")
        sides = {
            "lookup": lambda: _serve(engine, prompts, drafted),
            "plain": lambda: _serve(engine, prompts, sampling),
        }
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        theirs = _generate if work == "one" else _continuous_batching
        sides["transformers"] = lambda: theirs(model.eval(), prompts, new)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, run in sides.items():
            began = time.perf_counter()
            tokens = run()
            if turn:  # the first turn warms up
                rates[side].append(tokens / (time.perf_counter() - began))
    first = next(iter(sides))
    for side in sides:
        ratio = median(a / b for a, b in zip(rates[first], rates[side], strict=True))
        line: dict[str, Any] = {
            "bench": "engine", "work": work, "model": name, "who": side,
            "tokens_per_second": round(median(rates[side]), 1), "ratio": round(ratio, 3),
            "rounds": rounds, "streams": len(prompts), "new_tokens": new,
            "threads": torch.get_num_threads(), "cpu": instruction_set(),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


def _serve(engine: Engine, prompts: Prompts, sampling: Sampling) -> int:
    # A salt of its own for each call: the prefix cache must not remember the last round.
    tenant = str(time.perf_counter_ns())
    for i, prompt in enumerate(prompts):
        engine.add(Request(str(i), tuple(prompt), Binding(""), sampling, tenant=tenant))
    made = 0
    while engine.busy:
        made += sum(len(getattr(event, "tokens", ())) for event in engine.step())
    return made


@torch.no_grad()
def _generate(model: Any, prompts: Prompts, new: int) -> int:
    made = 0
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        made += out.shape[1] - len(prompt)
    return made


@torch.no_grad()
def _continuous_batching(model: Any, prompts: Prompts, new: int) -> int:
    config = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    results = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    return sum(len(result.generated_tokens) for result in results.values())


def _prompts(work: str, folder: Path, vocab: int) -> tuple[Prompts, int]:
    """Prompts as ids and the number of new tokens."""
    dice = random.Random(0)
    if work == "one":
        return [[dice.randrange(3, vocab) for _ in range(32)]], 64
    if work == "many":
        lengths = [dice.randrange(8, 96) for _ in range(32)]
        return [[dice.randrange(3, vocab) for _ in range(n)] for n in lengths], 32
    if not (folder / "tokenizer.json").exists():
        piece = [dice.randrange(3, vocab) for _ in range(40)]
        return [piece * 6], 128
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    code = Path(json.__file__).read_text().split('"""', 2)[2][:1200]
    chat = [{"role": "user", "content": f"Repeat this text, but write LOAD for load:\n{code}"}]
    return [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])], 128


def _real(folder: Path) -> None:
    import_source("smollm2", folder)


def _random(folder: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
