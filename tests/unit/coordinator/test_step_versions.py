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
from typing import Any

import pytest
from tokenizers import Tokenizer

import trainings
from plinth.coordinator.preferences.dataset import publish_pairs
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.report import Snapshot
from plinth.coordinator.respondent import Sampled
from plinth.coordinator.steps import STEP_KINDS
from plinth.coordinator.steps.compare import RIVALS, CompareRequire, choose
from plinth.coordinator.steps.prompts import PromptsSpec, split
from plinth.coordinator.steps.sample import line, summary
from plinth.coordinator.steps.verify import figures
from plinth.internal.v1 import preference_records_pb2
from plinth.models.ngram import ByteNgram
from plinth.shared.intake import Intake
from plinth.shared.prompt_set import Prompt
from plinth.shared.step_versions import STEP_VERSIONS
from plinth.shared.store import ArtifactStore
from plinth.tokenizer.vocabulary import CHATML, SPECIAL_TOKENS, VocabularySpec, train
from plinth.trainer.loop import Group
from plinth.trainer.loop import train as train_loop
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.policy.compare import _report, _Texts
from plinth.v1 import chat_pb2, preferences_pb2

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
    "sample": {1: {"lines": "5ca979b4be2b4de3"}},
    "verify": {1: {"figures": "7a14f72b8cd08caa"}},
    "compare": {1: {"figures": "d852770e10acc546"}},
    "preferences": {1: {"corpus": "f16fe2854d8084d4"}},
}
# What these do is move an alias or put up a deployment: they make nothing of their own.
MAKE_NOTHING = {"publish", "serve", "canary"}


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


def digest_of(value: Any) -> str:
    """Of JSON, numbers to six digits."""
    exact = json.loads(json.dumps(value, default=list), parse_float=lambda x: f"{float(x):.6g}")
    return hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()[:16]


def test_each_kind_has_a_version_and_one_that_makes_something_is_held_here() -> None:
    assert STEP_VERSIONS.keys() == STEP_KINDS.keys()
    assert all(version >= 1 for version in STEP_VERSIONS.values())
    assert MADE.keys() == STEP_KINDS.keys() - MAKE_NOTHING


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


def sampled(passed: int, word: str) -> list[Sampled]:
    """Eight answers, of which some pass."""
    return [
        Sampled(
            Prompt(f"Question {n}?", "even" if n % 2 == 0 else "odd"),
            (1, n),
            (2, 3, n),
            f"{word} {n} and {word} {n * n}",
            (-1.0, -0.5 * n, -0.25),
            n % 3 != 0,
            float(n < passed),
            {"checks": float(n < passed)},
        )
        for n in range(8)
    ]


def test_samples() -> None:
    answers = sampled(5, "bread")
    made = [[json.loads(line(one)) for one in answers], summary(answers)]
    pinned("sample", "lines", digest_of(made))


def test_verifications() -> None:
    answers = {"baseline": sampled(3, "rain"), "model": sampled(6, "moon")}
    likely = {side: [-0.3 * n for n in range(8)] for side in answers}
    pinned("verify", "figures", digest_of(figures(answers, likely)))


def test_comparisons(tmp_path: Path) -> None:
    """What is counted of three models' answers, and which goes on."""
    tokens = Tokenizer.from_file(
        str(trainings.tokenizer(tmp_path / "tokenizer") / "tokenizer.json")
    )
    said = ("the moon is a rock", "bread is baked", "rain falls", "the sun is a star")
    words = [f"{text} of {n} stones" for n in range(10) for text in said]
    prompts = {tuple(tokens.encode(f"{text}?").ids): tokens.encode(text).ids for text in words}
    texts = _Texts(tmp_path, list(prompts), {ids: tuple(of) for ids, of in prompts.items()})
    answers = [
        [
            (tuple(tokens.encode(f"{text} {n % step}").ids), float(n % step))
            for n, text in enumerate(words)
        ]
        for step in (2, 3, 5)
    ]
    report = _report(texts, answers)
    names = ("baseline", *RIVALS)
    models = {
        name: {"model": name, **one} for name, one in zip(names, report["models"], strict=False)
    }
    winner, _ = choose(models, CompareRequire())
    pinned("compare", "figures", digest_of([report, winner]))


def test_corpora_of_judgements(store: ArtifactStore) -> None:
    tasks = {
        f"t{n}": preference_records_pb2.PreferenceTaskRecord(
            task_id=f"t{n}",
            prompt=[chat_pb2.ChatMessage(role="user", content=f"Question {n}?")],
            responses=[
                preferences_pb2.PreferenceResponse(
                    response_id=r, text=f"{r} says {n}", model=f"{r}@1"
                )
                for r in ("a", "b", "c")
            ],
        )
        for n in range(20)
    }
    judgements = [
        preference_records_pb2.JudgementRecord(
            task_id=name,
            annotator="ann",
            source=preferences_pb2.JUDGEMENT_SOURCE_HUMAN,
            ranking=tiers([["b"], ["a", "c"]]),
        )
        for name in tasks
    ]
    record, _ = publish_pairs(
        store,
        "judged",
        Snapshot("c", len(judgements), judgements, tasks),
        preferences_pb2.PairSelection(),
        at_least=1,
        validation_fraction=0.2,
    )
    pinned("preferences", "corpus", content(store.fetch(record)))


def test_the_ngram_of_an_evaluation() -> None:
    texts = [str(document.text).encode() for document in trainings.texts(20)]
    bits = ByteNgram(5).fit(iter(texts[4:])).bits_per_byte(iter(texts[:4]))
    pinned("evaluate", "ngram", f"{bits:.6f}")
