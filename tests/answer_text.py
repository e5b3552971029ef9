"""The text of an answer, by transformers' tokens and Python's own decoder."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Of a byte-level tokenizer: without special tokens, and without the half of a character that
    an answer which was cut off may end with."""
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = tokenizer.convert_ids_to_tokens([i for i in ids if i not in special])
    data = bytes(_BYTES[character] for token in tokens for character in token)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)
