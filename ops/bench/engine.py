"""The engine against transformers: same weights, same prompts, same threads, in one process.

Prints one JSON line per result. `ratio` is Plinth's tokens per second over the other's, the median
over rounds in which the two take turns (so that a machine that slows down slows both).

    python ops/bench/engine.py [--rounds 3] [--models smollm2,random] [--work one,many,repeat]
                               [--device cpu] [--dtype fp32] [--reference] [--prompt 1024]

Models: smollm2 is the real one, imported and opened as a shard opens it. The others have random
weights, made on the device and shared by both sides: see `shapes.py`.

one: a single stream, greedy, against `generate`. batch: 32 streams with prompts of one length,
against `generate` of a batch. many: 32 streams of mixed prompts, against transformers' continuous
batching. prefill: one long prompt until its first token, against one forward pass with a cache.
repeat: the prompt's text is asked for again with small edits, with lookup drafts against without
(both are Plinth).

`gap` is the mean |Δ log p| of a prompt's tokens between the two sides, as a share of the standard
deviation of log p; one that no rounding explains ends the benchmark, since the two would not do
the same work.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from shapes import DTYPES, random_pair

from plinth.engine.engine import Engine
from plinth.engine.request import Binding, Request, Sampling, ScoresEvent
from plinth.kernels.library import instruction_set

Prompts = list[list[int]]
# Seen in SmolLM2's shape: 1e-6 and 0.01; with a wrong rotary angle 0.08, without attention 1.
GAPS = {"fp32": 1e-4, "bf16": 0.05}
THEIRS = {"one": "generate", "batch": "generate", "prefill": "forward", "many": "generate_batch"}


def main() -> None:
    """Measure what was asked for, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="smollm2,random")
    parser.add_argument("--work", default="one,many,repeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of prefill's prompt")
    parser.add_argument(
        "--reference", action="store_true", help="plain torch on the CPU too, as on a GPU"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models.split(","):
            engine, model = open_pair(name, Path(scratch) / name, options)
            gap = check_gap(engine, model, options.dtype)
            for work in options.work.split(","):
                measure(name, engine, model, work, options, gap)


def open_pair(name: str, folder: Path, options: argparse.Namespace) -> tuple[Engine, Any]:
    """Plinth's engine and transformers' model, of the same weights."""
    if name != "smollm2":
        return random_pair(
            name, options.device, DTYPES[options.dtype], native=not options.reference
        )
    # The real model's file and the settings need more than torch: see `pyproject.toml`.
    from plinth.inference.loading import load_engine
    from plinth.models.importer import import_source
    from plinth.shared.settings_sections import EngineSettings

    import_source("smollm2", folder)
    settings = EngineSettings(speculation="off", device=options.device, dtype=options.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[options.dtype])
    return load_engine(folder, settings).engine, model.eval().to(options.device)


def check_gap(engine: Engine, model: Any, dtype: str) -> float:
    """The gap over 64 tokens; ends the process where it is no rounding error."""
    dice = random.Random(1)
    ids = [dice.randrange(3, engine.runner.decoder.config.vocab_size) for _ in range(65)]
    engine.add(Request("gap", tuple(ids), Binding(""), score_from=1))
    scores: list[float] = []
    while engine.busy:
        for event in engine.step():
            assert isinstance(event, ScoresEvent)
            scores += event.logprobs
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]], device=model.device)).logits[0].float().cpu()
    theirs = logits.log_softmax(-1)[range(64), ids[1:]]
    gap = float((torch.tensor(scores) - theirs).abs().mean() / theirs.std())
    if not gap <= GAPS[dtype]:
        sys.exit(f"Plinth and transformers differ by {gap:.2g} of log p's deviation in {dtype}")
    return gap


def measure(
    name: str, engine: Engine, model: Any, work: str, options: argparse.Namespace, gap: float
) -> None:
    """One model and one kind of work: rounds in turns, then the medians."""
    prompts, new = _prompts(work, name, model, options.prompt)
    sampling = Sampling(temperature=0, max_tokens=new)
    sides: dict[str, Callable[[], int]] = {"plinth": lambda: _serve(engine, prompts, sampling)}
    if work == "repeat":
        drafted = replace(sampling, speculation="lookup")
        sides = {
            "lookup": lambda: _serve(engine, prompts, drafted),
            "plain": lambda: _serve(engine, prompts, sampling),
        }
    else:
        model.generation_config.eos_token_id = None
        theirs = {"generate": _generate, "forward": _forward, "generate_batch": _many}[THEIRS[work]]
        sides["transformers"] = lambda: theirs(model, prompts, new)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(options.rounds + 1):
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
            "rounds": options.rounds, "streams": len(prompts), "prompt_tokens": len(prompts[0]),
            "new_tokens": new, "gap": gap, "device": options.device, "dtype": options.dtype,
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
    return _counted(prompts, made, sampling.max_tokens)


def _counted(prompts: Prompts, made: int, new: int) -> int:
    """What a rate counts: the tokens made; of prefill, those read."""
    assert made == len(prompts) * new
    return sum(map(len, prompts)) if new == 1 else made


@torch.no_grad()
def _generate(model: Any, prompts: Prompts, new: int) -> int:
    ids = torch.tensor(prompts, device=model.device)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    made: int = out[:, ids.shape[1] :].cpu().numel()  # waits for the device
    return _counted(prompts, made, new)


@torch.no_grad()
def _forward(model: Any, prompts: Prompts, new: int) -> int:
    ids = torch.tensor(prompts, device=model.device)
    chosen = model(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist()
    return _counted(prompts, len(chosen), new)


@torch.no_grad()
def _many(model: Any, prompts: Prompts, new: int) -> int:
    config = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    results = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    made = sum(len(result.generated_tokens) for result in results.values())
    return _counted(prompts, made, new)


def _prompts(work: str, name: str, model: Any, long: int) -> tuple[Prompts, int]:
    """Prompts as ids and the number of new tokens."""
    dice, vocab = random.Random(0), model.config.vocab_size
    if work == "one":
        return [[dice.randrange(3, vocab) for _ in range(32)]], 64
    if work == "batch":
        return [[dice.randrange(3, vocab) for _ in range(32)] for _ in range(32)], 32
    if work == "prefill":
        return [[dice.randrange(3, vocab) for _ in range(long)]], 1
    if work == "many":
        lengths = [dice.randrange(8, 96) for _ in range(32)]
        return [[dice.randrange(3, vocab) for _ in range(n)] for n in lengths], 32
    if name != "smollm2":
        piece = [dice.randrange(3, vocab) for _ in range(40)]
        return [piece * 6], 128
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.name_or_path)
    code = Path(json.__file__).read_text().split('"""', 2)[2][:1200]
    chat = [{"role": "user", "content": f"Repeat this text, but write LOAD for load:\n{code}"}]
    return [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])], 128


if __name__ == "__main__":
    main()
