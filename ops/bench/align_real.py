"""A real model taught to keep instructions, for `align.py`: SmolLM2, the prompts and numbers of
`ops/pipelines/align-real.yaml`, and the whole work of each peer on the clock.

1. Six answers to each training prompt are sampled; rules say which pass.
2. One that passed against one that did not: pairs.
3. DPO of a low-rank adapter, with the likelihood term, the reference computed before.
4. Model and aligned model answer the held-out prompts; the model that it began as scores both.

What both peers need is here, free of either: prompts, rules, pairs, figures. The peers' own parts
are `run_self` (the engine and the training loop, in one process, without the platform around them)
and `align_real_trl.py`. The clock starts with a loaded model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

SPEC = Path(__file__).parents[1] / "pipelines" / "align-real.yaml"
Row = dict[str, Any]


def make_task(folder: Path, overrides: Row) -> None:
    """model/, train.jsonl, validation.jsonl and numbers.json in `folder`."""
    import yaml

    from plinth.coordinator.steps.prompts import PromptsSpec, split
    from plinth.models.importer import import_source
    from plinth.shared.intake import Intake
    from plinth.shared.prompt_set import write_prompts
    from plinth.trainer.loop.machine import choose_precision

    steps = yaml.safe_load(SPEC.read_text())["steps"]
    import_source("smollm2", folder / "model")
    for name, prompts in split(PromptsSpec(**steps["prompts"]), Intake("prompts")).items():
        write_prompts(prompts, folder / f"{name}.jsonl")
    train = steps["aligned"]
    rows, width = train["batch_size"] * 2 * 128, 576
    numbers = {
        "samples": steps["samples"]["samples"],
        "temperature": steps["samples"]["temperature"],
        "new_tokens": steps["samples"]["max_tokens"],
        "sequence_length": train["sequence_length"],
        "batch_size": train["batch_size"],
        "steps": train["steps"],
        "learning_rate": float(train["learning_rate"]),
        "beta": train["pairs"]["beta"],
        "likelihood_weight": train["pairs"]["likelihood_weight"],
        "rank": train["lora"]["rank"],
        "alpha": train["lora"]["alpha"],
        "judged_at": steps["gate"]["temperature"],
        "ties": steps["pairs"].get("ties", "first"),
        "prompts": 0,  # to learn from; 0: all
        "precision": choose_precision("auto", "cpu", rows, width),
        **overrides,
    }
    (folder / "numbers.json").write_text(json.dumps(numbers))


def read_task(folder: Path) -> tuple[Row, list[Row], list[Row]]:
    """(numbers, prompts to learn from, prompts that are held out)"""
    numbers = json.loads((folder / "numbers.json").read_text())
    sides = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    )
    train, held_out = sides
    return numbers, train[: numbers["prompts"] or None], held_out


def passes(checks: Sequence[Row], text: str) -> bool:
    """The rules of the spec, said a second time."""
    rules: dict[str, Callable[[Row], bool]] = {
        "max_words": lambda rule: len(text.split()) <= rule["n"],
        "lower_case": lambda _: text == text.lower(),
        "no_commas": lambda _: "," not in text,
        "bullets": lambda rule: (
            sum(line.lstrip()[:2] in ("- ", "* ", "+ ", "• ", "– ") for line in text.splitlines())
            == rule["n"]
        ),
        "json": lambda rule: _is_object(text, rule["required"]),
        "starts_with": lambda rule: text.strip().startswith(rule["text"]),
    }
    return all(rules[rule["kind"]](rule) for rule in checks)


def _is_object(text: str, keys: Sequence[str]) -> bool:
    lines = text.strip().splitlines()
    if len(lines) > 2 and lines[0].startswith("```") and lines[-1] == "```":
        lines = lines[1:-1]
    try:
        value = json.loads("\n".join(lines))
    except ValueError:
        return False
    return isinstance(value, dict) and all(key in value for key in keys)


def pairs_of(
    prompts: Sequence[Row], answers: Sequence[Sequence[tuple[str, float]]], ties: str
) -> list[Row]:
    """An answer that passed against one that did not, where a prompt has both; each with its mean
    log-probability. ties: the "first" of those that passed and of those that did not, or the
    "likely": the likeliest that passed against the least likely that did not."""
    pairs = []
    for prompt, said in zip(prompts, answers, strict=True):
        there = [(text, logprob) for text, logprob in said if text.strip()]
        good = [one for one in there if passes(prompt["checks"], one[0])]
        bad = [one for one in there if not passes(prompt["checks"], one[0])]
        if ties == "likely":
            good.sort(key=lambda one: -one[1])
            bad.sort(key=lambda one: one[1])
        if good and bad:
            chosen, rejected = good[0][0], bad[0][0]
            pairs.append({"prompt": prompt["prompt"], "chosen": chosen, "rejected": rejected})
    return pairs


@contextmanager
def part(name: str, shares: dict[str, float]) -> Iterator[None]:
    """Adds to `shares[name]` the seconds that the block takes."""
    began = time.perf_counter()
    yield
    shares[name] = shares.get(name, 0.0) + time.perf_counter() - began


def raw_line(
    sides: Mapping[str, Sequence[str]],
    logprobs: Mapping[str, Sequence[float]],
    shares: dict[str, float],
    pairs: int,
) -> Row:
    """What a peer's process tells the parent. `logprobs`: means per token of the answers before
    and after, by the model at the start."""
    return {
        "texts": sides,
        "logprobs": logprobs,
        "pairs": pairs,
        "seconds": round(sum(shares.values()), 1),
        "parts": {name: round(seconds, 1) for name, seconds in shares.items()},
        "threads": torch.get_num_threads(),
    }


def judged(line: Row, folder: Path) -> Row:
    """A peer's line with texts and log-probabilities made into figures."""
    from plinth.algos.intervals import wilson
    from plinth.coordinator.steps.verify import PERCENTILE, distinct_trigrams, percentile

    prompts = read_task(folder)[2]
    texts, logprobs = line.pop("texts"), line.pop("logprobs")
    kept = {
        side: [passes(p["checks"], text) for p, text in zip(prompts, answers, strict=True)]
        for side, answers in texts.items()
    }
    kinds: dict[str, list[bool]] = {}
    for prompt, good in zip(prompts, kept["after"], strict=True):
        kinds.setdefault(prompt["group"], []).append(good)
    bound = percentile(logprobs["before"], PERCENTILE)
    after = logprobs["after"]
    trigrams = {side: distinct_trigrams(answers) for side, answers in texts.items()}
    return {
        **line,
        "before": sum(kept["before"]) / len(prompts),
        "after": sum(kept["after"]) / len(prompts),
        "interval": [round(x, 3) for x in wilson(sum(kept["after"]), len(prompts))],
        "by_kind": {name: sum(group) / len(group) for name, group in kinds.items()},
        "base_logprob_before": round(fmean(logprobs["before"]), 3),
        "base_logprob_after": round(fmean(after), 3),
        "unlikely": sum(one < bound for one in after) / len(after),
        "trigrams_ratio": round(trigrams["after"] / trigrams["before"], 3),
    }


# -- this project --------------------------------------------------------------------------------


def run_self(seed: int, folder: Path) -> Row:
    """The engine samples and judges, the training loop trains. Leaves adapter/ and greedy.json."""
    from transformers import AutoTokenizer

    from plinth.inference.loading import load_engine
    from plinth.shared.settings_sections import EngineSettings

    numbers, train, held_out = read_task(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    settings = EngineSettings(speculation="off", max_waiting=4096, kv_cache_bytes=512 << 20)
    speaker = Speaker(folder / "model", tokenizer, settings, load_engine)
    shares: dict[str, float] = {}
    with part("sample", shares):
        asked = [speaker.ids(row["prompt"]) for row in train]
        heat, most = numbers["temperature"], numbers["new_tokens"]
        said = speaker.answers(asked, numbers["samples"], heat, most, seed)
        heard = [[(speaker.text(ids), fmean(raw)) for ids, raw in group] for group in said]
        pairs = pairs_of(train, heard, numbers["ties"])
    with part("train", shares):
        job = _train(seed, folder, numbers, pairs, speaker)
    with part("judge", shares):
        asked = [speaker.ids(row["prompt"]) for row in held_out]
        aligned = Speaker(job / "model", tokenizer, settings, load_engine)
        sides, logprobs = {}, {}
        for side, who in (("before", speaker), ("after", aligned)):
            groups = who.answers(asked, 1, numbers["judged_at"], most, seed)
            sides[side] = [ids for ((ids, _),) in groups]
            logprobs[side] = [sum(raw) / len(raw) for ((_, raw),) in groups]
        scores = speaker.scores(asked, sides["after"])
        logprobs["after"] = [sum(one) / len(one) for one in scores]
    texts_of = {side: [speaker.text(ids) for ids in answers] for side, answers in sides.items()}
    greedy = aligned.answers(asked[:10], 1, 0.0, 48, 0)
    (folder / "greedy.json").write_text(
        json.dumps([[list(ids), row] for ((row, _),), ids in zip(greedy, asked, strict=False)])
    )
    line = raw_line(texts_of, logprobs, shares, len(pairs))
    return {"peer": "self", "algo": "real", "seed": seed, **line}


class Speaker:
    """A model folder behind an engine: ids in, ids and log-probabilities out."""

    def __init__(self, folder: Path, tokenizer: Any, settings: Any, load_engine: Any) -> None:
        self.engine = load_engine(folder, settings).engine
        self.tokenizer = tokenizer

    def ids(self, prompt: str) -> list[int]:
        chat = [{"role": "user", "content": prompt}]
        return list(
            self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        )

    def text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def answers(
        self, prompts: Sequence[list[int]], samples: int, heat: float, most: int, seed: int
    ) -> list[list[tuple[list[int], list[float]]]]:
        """By prompt and sample: (ids with the end, raw log-probabilities)."""
        from plinth.engine.request import Binding, Request, Sampling

        for number, prompt in enumerate(prompts):
            for index in range(samples):
                sampling = Sampling(
                    temperature=heat,
                    max_tokens=most,
                    seed=seed * 100_000 + number,
                    sample_index=index,
                    stop_ids=frozenset({self.tokenizer.eos_token_id}),
                    keep_stop=True,
                )
                self.engine.add(Request(f"{number}.{index}", tuple(prompt), Binding(""), sampling))
        said: dict[str, tuple[list[int], list[float]]] = {}
        while self.engine.busy:
            for event in self.engine.step():
                ids, raw = said.setdefault(event.request_id, ([], []))
                ids += [token.id for token in event.tokens]
                raw += [token.raw_logprob for token in event.tokens]
        return [
            [said[f"{number}.{index}"] for index in range(samples)]
            for number in range(len(prompts))
        ]

    def scores(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]]
    ) -> list[list[float]]:
        """Log-probability of each token of each answer."""
        from plinth.engine.request import Binding, Request, ScoresEvent

        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids = (*prompt, *answer)
            self.engine.add(Request(str(number), ids, Binding(""), score_from=len(prompt)))
        found: dict[str, list[float]] = {}
        while self.engine.busy:
            for event in self.engine.step():
                if isinstance(event, ScoresEvent):
                    found.setdefault(event.request_id, []).extend(event.logprobs)
        return [found[str(number)] for number in range(len(prompts))]


def _train(seed: int, folder: Path, numbers: Row, pairs: Sequence[Row], speaker: Speaker) -> Path:
    """The job's folder, with the merged model and the adapter."""
    from plinth.trainer.loop import Group, TrainConfig
    from plinth.trainer.loop.job_folder import JobFolder
    from plinth.trainer.loop.train import train

    data, job = folder / f"dataset-{seed}", folder / f"job-{seed}"
    _write_dataset(data, pairs, speaker, folder / "model")
    job.mkdir()
    config = TrainConfig(
        objective="dpo",
        dataset=str(data),
        init_from=str(folder / "model"),
        model=None,
        sequence_length=numbers["sequence_length"],
        batch_size=numbers["batch_size"],
        micro_batch_size=numbers["batch_size"],
        steps=numbers["steps"],
        max_seconds=0,
        learning_rate=numbers["learning_rate"],
        precision=numbers["precision"],
        seed=seed,
        threads=torch.get_num_threads(),
        checkpoint_every=10_000,
        pairs={"beta": numbers["beta"], "likelihood_weight": numbers["likelihood_weight"]},
        lora={"rank": numbers["rank"], "alpha": numbers["alpha"]},
        base="model",
    )
    told = JobFolder(job)
    if train(config, told, Group()) != "succeeded":
        raise RuntimeError(f"training ended with {told.outcome()}")
    return job


def _write_dataset(data: Path, pairs: Sequence[Row], speaker: Speaker, model: Path) -> None:
    import shutil

    from plinth.trainer.data.shards import DatasetInfo, SplitWriter, token_dtype, write_info

    tokenizer = speaker.tokenizer
    size, end = len(tokenizer), tokenizer.eos_token_id
    dtype, splits = token_dtype(size), {}
    data.mkdir()
    for name in ("train", "validation"):
        writer = SplitWriter(data, name, dtype, masked=True, limit=1 << 30)
        # The whole of the pairs is learned from, the held-out prompts judge; a few for the loop's
        # own figures.
        for pair in pairs if name == "train" else pairs[:8]:
            prompt = speaker.ids(pair["prompt"])
            for side in ("chosen", "rejected"):
                answer = [*tokenizer(pair[side])["input_ids"], end]
                writer.add(prompt + answer, 0, [0] * len(prompt) + [1] * len(answer))
        writer.close()
        splits[name] = writer.info
    write_info(data, DatasetInfo("pairs", "", "", size, end, end, dtype, splits))
    shutil.copytree(model, data / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
