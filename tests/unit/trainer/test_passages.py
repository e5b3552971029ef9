"""Text made into exchanges: what is asked and answered stands in it, and the sides stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.corpus import CorpusCounts, read_split, write_corpus
from plinth.trainer.data.documents import Document
from plinth.trainer.data.passages import Passages

SENTENCES = st.lists(st.from_regex(r"[A-Z][a-z]{2,9}( [a-z]{2,9}){1,30}[.!?]", fullmatch=True))
PARAGRAPHS = SENTENCES.map("\n".join) | st.sampled_from(
    ["  x = f(1); y = [2]; z = {3: 4}", "Word."]
)
TEXTS = st.lists(st.lists(PARAGRAPHS, min_size=1, max_size=6).map("\n \n".join), max_size=6)


@given(TEXTS, TEXTS, st.sampled_from(["chats", "pairs"]))
def test_every_exchange_stands_in_its_text(
    learned: list[str], held_out: list[str], form: str
) -> None:
    made, asked = Passages(form), []
    for side, texts in (("train", learned), ("validation", held_out)):
        found = list(made.of((Document(text=text) for text in texts), side))
        flat = [" ".join(text.split()) for text in texts]
        for exchange in found:
            (_, question), (_, answer) = exchange.messages
            first = question.removeprefix("Go on: ")
            assert any(f"{first} {answer}" in text for text in flat)
            assert answer[-1] in ".!?"
            assert len(answer) <= 480
            assert exchange.form == ("pairs" if form == "pairs" else "messages")
            assert exchange.rejected != answer
        asked.append({exchange.messages[0][1].casefold() for exchange in found})
    assert not asked[0] & asked[1]
    paragraphs = [p for text in (*learned, *held_out) for p in text.split("\n \n") if p.strip()]
    assert made.intake.taken + made.intake.missing == len(paragraphs)


def test_what_is_held_out_of_a_corpus_is_held_out_of_its_passages(tmp_path: Path) -> None:
    sides = {
        side: [
            f"{side} begins like this, number {n}. And {side} goes on with {n} words more."
            for n in range(9)
        ]
        for side in ("train", "validation")
    }
    made = Passages("pairs")
    learned, held_out = (
        made.of((Document(text=text) for text in texts), side) for side, texts in sides.items()
    )
    counts = write_corpus(
        learned, tmp_path / "c", source="s", validation_fraction=0, held_out=held_out
    )
    assert min(counts.documents.values()) >= 8
    for side in sides:
        for document in read_split(tmp_path / "c", side):
            assert document.messages[0][1].startswith(f"Go on: {side} begins")


def test_passages_are_made_of_plain_text_alone() -> None:
    chat = Document(messages=(("user", "a"), ("assistant", "b")))
    with pytest.raises(InvalidArgument, match="plain text, and the corpus holds chat messages"):
        list(Passages("chats").of([chat], "train"))


def write(
    folder: Path, learned: str, held_out: str, form: str = "chats"
) -> tuple[CorpusCounts, Passages]:
    made = Passages(form)
    sides = [made.of([Document(text=t)] if t else [], s) for t, s in
             ((learned, "train"), (held_out, "validation"))]  # fmt: skip
    counts = write_corpus(
        sides[0],
        folder / "c",
        source="text@1",
        validation_fraction=0,
        held_out=sides[1],
        max_left_out=1,
        intake=[made.intake],
    )
    return counts, made


GOOD = "A passage begins with this sentence. And it goes on with some more words than that."


@pytest.mark.parametrize(
    ("learned", "held_out", "says"),
    [
        ("A heading\n\nx = [1, 2, 3]; y = {4: 5}", "", "0 of 2 paragraphs; left out: 2 of no two"),
        ("A heading", GOOD, "1 of 2 paragraphs"),
        ("", "", "0 paragraphs"),
    ],
)
def test_where_no_passage_comes_of_a_text_it_is_said_what_one_needs(
    tmp_path: Path, learned: str, held_out: str, says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        write(tmp_path, learned, held_out)
    assert "two sentences" in caught.value.message
    assert "UTF-8" not in caught.value.message
    # What it says helps.
    counts, _ = write(tmp_path / "again", f"{learned}\n\nAnother {GOOD}", held_out)
    assert counts.documents["train"] == 1


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("今天天气很好。", "我们去公园玩了很久。然后回家吃饭。大家都很开心！"),
        (
            "昨日は友達と映画を見ました。",
            "「面白い？」と聞くと、笑って答えました。それから帰りました。",
        ),
        ("आज मौसम बहुत अच्छा है। ", "हम सब लोग पार्क में घूमने गए। फिर घर आए।"),
    ],
)
def test_sentences_of_other_scripts_are_told_apart(tmp_path: Path, first: str, others: str) -> None:
    write(tmp_path, first + others, "")
    (only,) = read_split(tmp_path / "c", "train")
    assert [content for _, content in only.messages] == [f"Go on: {first.strip()}", others]


def test_a_paragraph_that_makes_no_pair_is_left_out_and_said(tmp_path: Path) -> None:
    counts, made = write(tmp_path, f"{GOOD}\n\n今天天气很好。{'好' * 30}。", "", "pairs")
    assert made.intake.taken == sum(counts.documents.values())
    assert made.intake.taken + made.intake.missing == 2
