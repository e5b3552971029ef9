"""Text made into exchanges: what is asked and answered stands in it, and the sides stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.corpus import read_split, write_corpus
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
