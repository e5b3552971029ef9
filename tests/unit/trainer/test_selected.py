"""Scored samples into corpora: what comes out is what a corpus folder takes."""

from __future__ import annotations

import json
from functools import partial

import pytest

from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.corpus import read_split, write_corpus
from plinth.trainer.data.documents import read_file
from plinth.trainer.data.selected import (
    Scored,
    best_documents,
    of_prompts,
    pair_documents,
    read_scored,
    selected,
    write_documents,
)

SUM, CAPITAL = (("system", "Be brief."), ("user", "2 + 2?")), (("user", "Capital of France?"),)
SAMPLES = [
    Scored(SUM, "4", 1.0),
    Scored(CAPITAL, "Paris", 0.9),
    Scored(SUM, "5", 0.0),
    Scored(SUM, "Four", 0.8),
    Scored(CAPITAL, "Paris.", 0.9),
    Scored(SUM, "4", 0.1),  # said before
    Scored(SUM, " ", 9.0),  # nothing to learn
]


def test_the_best_of_each_prompt_become_chats() -> None:
    (first, second) = best_documents(SAMPLES)
    assert first.messages == (*SUM, ("assistant", "4"))
    assert second.messages == (*CAPITAL, ("assistant", "Paris"))
    kept = [document.messages[-1][1] for document in best_documents(SAMPLES, keep=2)]
    assert kept == ["4", "Four", "Paris", "Paris."]
    good = [document.messages[-1][1] for document in best_documents(SAMPLES, keep=3, at_least=0.85)]
    assert good == ["4", "Paris", "Paris."]


def test_pairs_are_of_one_prompt_and_further_apart_than_the_gap() -> None:
    (only,) = pair_documents(SAMPLES, source="reward:judge@1")
    assert (only.messages[-1][1], only.rejected) == ("4", "5")
    assert only.messages[:-1] == SUM
    assert only.source == "reward:judge@1"
    every = [(d.messages[-1][1], d.rejected) for d in pair_documents(SAMPLES, pairing="all")]
    assert every == [("4", "5"), ("Four", "5"), ("4", "Four")]
    wide = [
        (d.messages[-1][1], d.rejected) for d in pair_documents(SAMPLES, pairing="all", min_gap=0.5)
    ]
    assert wide == [("4", "5"), ("Four", "5")]
    assert list(pair_documents(SAMPLES, min_gap=1.0)) == []


def test_of_equal_rewards_the_likeliest_is_the_best_and_the_least_likely_the_worst(
    tmp_path,
) -> None:
    told = [("a", 1, -0.9), ("b", 1, -0.2), ("c", 0, -0.5), ("d", 0, -3.0), ("e", 0.5, -9.0)]
    path = tmp_path / "samples.jsonl"
    lines = [{"prompt": "Q?", "answer": a, "reward": r, "logprob": p} for a, r, p in told]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (pair,) = pair_documents(read_scored(path), ties="likely")
    assert (pair.messages[-1][1], pair.rejected) == ("b", "d")
    (pair,) = pair_documents(read_scored(path))
    assert (pair.messages[-1][1], pair.rejected) == ("a", "c")
    with pytest.raises(InvalidArgument, match="sample anew, or use 'first'"):
        list(pair_documents(SAMPLES, ties="likely"))


@pytest.mark.parametrize("make", [best_documents, pair_documents])
def test_a_corpus_takes_the_file(make, tmp_path) -> None:
    samples = [
        Scored((("user", f"Say {number}."),), f"{number}!" * (1 + side), float(side))
        for number in range(40)
        for side in range(2)
    ]
    folder = tmp_path / "corpus"
    folder.mkdir()
    assert write_documents(make(samples), folder / "selected.jsonl") == 40
    assert [path.name for path in folder.iterdir()] == ["selected.jsonl"]
    documents = list(read_file(folder / "selected.jsonl"))
    assert documents == list(make(samples))
    write_corpus(iter(documents), tmp_path / "out", source="t", validation_fraction=0.2)
    splits = [list(read_split(tmp_path / "out", split)) for split in ("train", "validation")]
    assert sum(map(len, splits)) == 40


def test_an_error_in_the_middle_leaves_no_file(tmp_path) -> None:
    def broken():
        yield from best_documents(SAMPLES)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_documents(broken(), tmp_path / "x.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_scored_samples_are_read_in_both_shapes(tmp_path) -> None:
    lines = [
        {"prompt": "Capital of France?", "answer": "Paris", "reward": 1, "model": "m@1"},
        {
            "prompt": [{"role": r, "content": c} for r, c in SUM],
            "answer": "4",
            "reward": 0.5,
        },
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    assert list(read_scored(path)) == [Scored(CAPITAL, "Paris", 1.0), Scored(SUM, "4", 0.5)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"answer": "x", "reward": 1}', "'prompt' must be a list"),
        ('{"prompt": [], "answer": "x", "reward": 1}', "not empty"),
        ('{"prompt": "q", "reward": 1}', "'answer' must be a string"),
        ('{"prompt": "q", "answer": "x"}', "'reward' must be a number"),
        ('{"prompt": "q", "answer": "x", "reward": true}', "'reward' must be a number"),
        ('{"prompt": "q", "answer": "x", "reward": NaN}', "must be a finite number"),
        ('{"prompt": "q", "answer": "x", "reward": 1e999}', "must be a finite number"),
        ('{"prompt": "q", "answer": "x", "reward": 1' + "0" * 400 + "}", "must be a finite number"),
        ('{"prompt": "q", "answer": "\\ud800", "reward": 1}', "lone surrogate"),
    ],
)
def test_a_bad_line_is_named(line, says, tmp_path) -> None:
    path = tmp_path / "scored.jsonl"
    path.write_text('{"prompt": "q", "answer": "x", "reward": 1}\n' + line)
    with pytest.raises(InvalidArgument, match=says) as caught:
        list(read_scored(path))
    assert "scored.jsonl:2" in caught.value.message


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: best_documents([Scored(SUM, "4", float("nan"))]), "must be a finite number"),
        (lambda: best_documents([Scored((), "4", 1.0)]), "not the assistant's"),
        (lambda: pair_documents([Scored((*SUM, ("assistant", "4")), "5", 1.0)]), "not the assist"),
        (lambda: pair_documents(SAMPLES, pairing="some"), "'extremes' or 'all'"),
        (lambda: pair_documents(SAMPLES, min_gap=-1.0), "min_gap is -1.0"),
        (lambda: best_documents(SAMPLES, keep=0), "k is 0"),
    ],
)
def test_what_cannot_be_selected_from_is_refused(make, says) -> None:
    with pytest.raises(InvalidArgument, match=says):
        list(make())


def test_each_prompt_is_told_of(tmp_path) -> None:
    """Which gave something to learn from, and why the others did not."""
    cases = [
        (partial(best_documents), 2, {"empty answers": 1}),
        (partial(best_documents, at_least=0.95), 1, {"without an answer worth 0.95": 1}),
        (partial(pair_documents), 1, {"whose answers are worth the same within 0": 1}),
        (partial(pair_documents, pairing="all", min_gap=2.0), 0,
         {"whose answers are worth the same within 2": 2}),
    ]  # fmt: skip
    for make, taken, noted in cases:
        intake = of_prompts()
        documents = list(make(SAMPLES, intake=intake))
        assert intake.taken == len({d.messages[:-1] for d in documents}) == taken
        assert intake.noted == {"empty answers": 1, **noted}
        assert intake.missing == 0


def test_where_nothing_is_selected_the_advice_is_about_samples(tmp_path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [{"prompt": f"{n}?", "answer": a, "reward": r} for n in range(9) for a, r in
             (("a", 0.1), ("b", 0.2))]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def made(least: float, out: str) -> object:
        intake = of_prompts()
        found = selected(tmp_path, "extremes", least, "first", "s@1", intake)
        return write_corpus(
            found, tmp_path / out, source="s@1", validation_fraction=0.2, intake=[intake]
        )

    with pytest.raises(InvalidArgument, match=r"9 whose answers are worth .* margin smaller"):
        made(0.5, "a")
    assert made(0.05, "b")
