"""What a comparison's report shows of the answers, and which of two is counted as better."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

import trainings
from checkpoints import byte_tokenizer
from plinth.trainer.data.documents import Document
from plinth.trainer.data.shards import Split
from plinth.trainer.policy.compare import _text, against
from plinth.trainer.policy.prompts import references_of


def test_an_answer_that_was_cut_inside_a_character_ends_before_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_tokenizer(tmp_path) / "tokenizer.json"))
    text = "é🙂 ok 漢"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    for end in range(len(ids) + 1):
        whole = text.encode()[:end].decode(errors="ignore")
        assert _text(tokenizer, [*ids[:end], 2]) == whole


def test_the_same_answer_is_a_tie_whatever_noise_its_score_has() -> None:
    """A judge's batch may differ in the last bit; an equal score of another answer is a tie too."""
    baseline = [((1, 2), 0.5), ((3,), 0.1), ((4,), 0.2), ((5,), 0.3), ((), 0.0)]
    answers = [((1, 2), 0.5000001), ((6,), 0.3), ((7,), 0.1), ((8,), 0.3), ((), -0.0000001)]
    figures = against(baseline, answers)
    counts = [figures[name] for name in ("wins", "losses", "ties", "same_answers")]
    assert counts == [1, 1, 3, 2]
    assert figures["win_rate"] == 0.5


def test_the_reference_of_a_prompt_is_the_answer_to_it(tmp_path: Path) -> None:
    """Not the answers to what was asked after it."""
    chats = [
        Document(
            messages=(
                ("user", f"question {n}"),
                ("assistant", f"first answer {n}"),
                ("user", "and then?"),
                ("assistant", f"second answer {n}"),
            )
        )
        for n in range(20)
    ]
    dataset = trainings.dataset(tmp_path / "d", chats)
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
    found = references_of(Split(dataset, "train"))
    assert found
    for prompt, reference in found.items():
        number = tokenizer.decode(list(prompt)).split("question ")[1].split()[0]
        assert _text(tokenizer, reference) == f"first answer {number}"
