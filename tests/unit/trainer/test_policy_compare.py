"""What a comparison's report shows of the answers."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from checkpoints import byte_tokenizer
from plinth.trainer.policy.compare import _text


def test_an_answer_that_was_cut_inside_a_character_ends_before_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_tokenizer(tmp_path) / "tokenizer.json"))
    text = "é🙂 ok 漢"
    ids = tokenizer.encode(text).ids
    assert len(ids) == len(text.encode())
    for end in range(len(ids) + 1):
        whole = text.encode()[:end].decode(errors="ignore")
        assert _text(tokenizer, [*ids[:end], 2]) == whole
