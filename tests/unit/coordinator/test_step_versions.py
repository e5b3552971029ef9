"""What small steps make, by the version of their kind: whoever changes the one changes the other.

Where a test here fails, what a step of that kind makes from the same inputs has changed. If that
was meant, raise the kind's number in `shared/step_versions.py` and pin what it makes now, under the
new number; else every user keeps results of the code before. The losses are of datasets that are
made here: where only those changed, losses are pinned again under the number that they have.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import trainings
from plinth.coordinator.steps import STEP_KINDS
from plinth.coordinator.steps.prompts import PromptsSpec, split
from plinth.models.ngram import ByteNgram
from plinth.shared.intake import Intake
from plinth.shared.step_versions import STEP_VERSIONS
from plinth.tokenizer.vocabulary import CHATML, SPECIAL_TOKENS, VocabularySpec, train
from plinth.trainer.loop import Group
from plinth.trainer.loop import train as train_loop
from plinth.trainer.loop.job_folder import JobFolder

# kind → version → part → what it makes.
MADE = {
    "data": {
        1: {
            "texts": "f3df3a7c670cdfa46425fda01d620d28",
            "chats": "07562ffb7d62534592836d644a375fb5",
            "pairs": "eeaa54a56710cf8f3cf11fb34d62d859",
        }
    },
    "tokenizer": {1: {"vocabulary": "820e7d32b10989fd"}},
    "prompts": {1: {"topics": "a276c0ab42677fd4"}},
    "train": {1: {"clm": "4.62", "sft": "4.67"}},
    "evaluate": {1: {"ngram": "0.664094"}},
}


def pinned(kind: str, part: str, made: str) -> None:
    version = STEP_VERSIONS[kind]
    right = MADE[kind].get(version, {}).get(part)
    assert made == right, (
        f"what a step of kind {kind} makes ({part}) is {made!r} now, version {version} made "
        f"{right!r}: see the top of this file"
    )


def content(folder: Path) -> str:
    """Of the data files; the JSON beside them tells of paths and times."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".json":
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def test_each_kind_has_a_version() -> None:
    assert STEP_VERSIONS.keys() == STEP_KINDS.keys()
    assert all(version >= 1 for version in STEP_VERSIONS.values())


@pytest.mark.parametrize("part", ["texts", "chats", "pairs"])
def test_datasets(part: str, tmp_path: Path) -> None:
    trainings.dataset(tmp_path, getattr(trainings, part)(30))
    made = content(tmp_path / "corpus") + content(tmp_path / "dataset")
    pinned("data", part, made)


def test_vocabularies(tmp_path: Path) -> None:
    lines = [json.dumps({"text": document.text}) for document in trainings.texts(50)]
    (tmp_path / "documents-00000.jsonl").write_text("\n".join(lines) + "\n")
    spec = VocabularySpec(270, tuple(SPECIAL_TOKENS), CHATML)
    made = train([tmp_path / "documents-00000.jsonl"], spec, lambda _: None)
    pinned("tokenizer", "vocabulary", hashlib.sha256(made.to_str().encode()).hexdigest()[:16])


def test_prompts() -> None:
    spec = PromptsSpec.model_validate(
        {
            "kind": "prompts",
            "topics": ["bread", "rain", "the moon"],
            "constraints": [
                {"name": n, "ask": f"{n} words.", "checks": [{"kind": "max_words", "n": 20}]}
                for n in ("few", "many")
            ],
            "held_out": 1,
        }
    )
    made = split(spec, Intake("prompts"))
    sides = {name: [(p.text, p.group, p.checks) for p in side] for name, side in made.items()}
    text = json.dumps(sides, sort_keys=True, default=list)
    pinned("prompts", "topics", hashlib.sha256(text.encode()).hexdigest()[:16])


@pytest.mark.parametrize(("objective", "documents"), [("clm", "texts"), ("sft", "chats")])
def test_losses(objective: str, documents: str, tmp_path: Path) -> None:
    """Of a few steps, to three digits: processors differ behind them."""
    dataset = trainings.dataset(tmp_path, getattr(trainings, documents)(60))
    config = trainings.config(dataset, steps=3, objective=objective)
    folder = JobFolder(trainings.job(tmp_path / "job", config))
    assert train_loop(config, folder, Group()) == "succeeded", folder.outcome()
    outcome = folder.outcome()
    assert outcome is not None
    pinned("train", objective, f"{outcome['metrics']['train_loss']:.3g}")


def test_the_ngram_of_an_evaluation() -> None:
    texts = [str(document.text).encode() for document in trainings.texts(20)]
    bits = ByteNgram(5).fit(iter(texts[4:])).bits_per_byte(iter(texts[:4]))
    pinned("evaluate", "ngram", f"{bits:.6f}")
