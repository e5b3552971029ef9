"""Ids in, text out as it becomes complete; what comes out in pieces equals what comes at once.

Bytes that can be no UTF-8 are U+FFFD, as everywhere. A character whose last bytes never came is no
such thing: a text that ends inside it ends before it.

Two kinds of vocabulary: byte-level (a token is bytes, and characters may span tokens), and
SentencePiece's with byte fallback (a token is text, and only `<0xE2>` tokens are bytes). Anything
else is refused, since pieces of its text depend on what follows.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from plinth.shared.errors import InvalidArgument

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class TokenTable:
    """What each token stands for; shared by all streams of one tokenizer.

    fallback: SentencePiece's byte tokens; None for a byte-level vocabulary.
    strips_first_space: SentencePiece writes a space before the first word that is not text.
    limit: ids from here on are errors; below it, an id without a token is empty text.
    """

    text: Mapping[int, bytes]
    fallback: Mapping[int, bytes] | None
    strips_first_space: bool
    limit: int

    def bytes_of(self, id_: int) -> bytes:
        """The bytes of one token. InvalidArgument for an id outside the vocabulary."""
        if not 0 <= id_ < self.limit:
            raise InvalidArgument(
                f"token id {id_} is outside the vocabulary of {self.limit}", field="ids"
            )
        if self.fallback is not None and id_ in self.fallback:
            return self.fallback[id_]
        return self.text.get(id_, b"")


class Detokenizer:
    """A stream for one sequence. Never gives half a character: incomplete UTF-8 is held back."""

    def __init__(self, table: TokenTable, skipped: Collection[int]) -> None:
        self._table = table
        self._skipped = skipped
        self._at_start = True
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # SentencePiece: the run of byte tokens so far. It is text only if all of it is.
        self._run = bytearray()
        self._length = 0  # characters of `add_located`

    def add(self, ids: Sequence[int]) -> str:
        """Text that `ids` complete. InvalidArgument for an id outside the vocabulary."""
        text = []
        for id_ in ids:
            token = self._table.bytes_of(id_)
            if id_ not in self._skipped:
                text.append(self._step(id_, token))
        return self._stripped("".join(text))

    def add_located(self, ids: Sequence[int]) -> tuple[str, list[int], list[int]]:
        """As `add`; with, for each id, where its own text starts and how much text there is once it
        was added, both in characters from the first call on. A token that is a part of a character
        starts where the character does."""
        text, starts, ends = [], [], []
        for id_ in ids:
            starts.append(self._length + self._held_before(id_))
            text.append(self.add([id_]))
            self._length += len(text[-1])
            ends.append(self._length)
        return "".join(text), starts, ends

    def _held_before(self, id_: int) -> int:
        """Characters of what is held back that come before the text of this id."""
        if self._table.fallback is None:
            held, _ = self._utf8.getstate()
            own = b"" if id_ in self._skipped else self._table.bytes_of(id_)
            continues = not own or own[0] & 0xC0 == 0x80
            return 0 if continues else len(held.decode(errors="replace"))
        if id_ in self._table.fallback:
            return len(self._run[: complete_length(self._run)].decode(errors="replace"))
        return len(self._run.decode(errors="replace"))

    def flush(self) -> str:
        """The end of the text: what is held back, without half a character at its end."""
        self._utf8.reset()
        del self._run[complete_length(self._run) :]
        return self._stripped(self._end_run())

    def _step(self, id_: int, token: bytes) -> str:
        if self._table.fallback is None:
            return self._utf8.decode(token)
        if id_ in self._table.fallback:
            self._run += token
            return ""
        return self._end_run() + token.decode("utf-8")

    def _end_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return _REPLACEMENT * len(run)  # the tokenizers library's rule

    def _stripped(self, text: str) -> str:
        if not self._at_start or not text:
            return text
        self._at_start = False
        return text.removeprefix(" ") if self._table.strips_first_space else text


def complete_length(text: bytes | bytearray) -> int:
    """Bytes of `text` without a character at its end that more bytes could complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(bytes(text))
    return len(text) - len(decoder.getstate()[0])


def token_table(
    vocabulary: Mapping[str, int], description: Mapping[str, Any], limit: int
) -> TokenTable:
    """The table of a `tokenizer.json`. InvalidArgument when its decoder is unknown."""
    if _is_byte_level(description):
        alphabet = byte_level_table()
        text = {id_: _byte_level(token, alphabet) for token, id_ in vocabulary.items()}
        return TokenTable(text, None, False, limit)
    if _is_fallback(description):
        text = {id_: token.replace("\u2581", " ").encode() for token, id_ in vocabulary.items()}
        return TokenTable(text, _fallback_ids(vocabulary), len(_steps(description)) == 4, limit)
    kind = (description.get("decoder") or {}).get("type")
    raise InvalidArgument(
        f"tokenizer.json: decoder {kind!r} is unknown; byte-level and SentencePiece's with byte "
        "fallback can be streamed",
        reason="UNKNOWN_DECODER",
    )


def byte_level_table() -> dict[str, int]:
    """GPT-2's alphabet: the character that stands for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    assert table.keys() == set(ByteLevel.alphabet())
    return table


def _byte_level(token: str, table: Mapping[str, int]) -> bytes:
    # An added token may hold characters outside the alphabet, such as a space: it is then itself.
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()


def _is_byte_level(description: Mapping[str, Any]) -> bool:
    return bool((description.get("decoder") or {}).get("type") == "ByteLevel")


def _steps(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    decoder = description.get("decoder") or {}
    return list(decoder.get("decoders", [])) if decoder.get("type") == "Sequence" else []


def _is_fallback(description: Mapping[str, Any]) -> bool:
    steps = _steps(description)
    kinds = [step.get("type") for step in steps]
    if kinds not in (
        ["Replace", "ByteFallback", "Fuse"],
        ["Replace", "ByteFallback", "Fuse", "Strip"],
    ):
        return False
    replaces = steps[0].get("pattern") == {"String": "\u2581"} and steps[0].get("content") == " "
    strip = steps[3] if len(steps) == 4 else {"content": " ", "start": 1, "stop": 0}
    return replaces and (strip["content"], strip["start"], strip["stop"]) == (" ", 1, 0)


def _fallback_ids(vocabulary: Mapping[str, int]) -> dict[int, bytes]:
    matches = ((id_, _FALLBACK.fullmatch(token)) for token, id_ in vocabulary.items())
    return {id_: bytes([int(match[1], 16)]) for id_, match in matches if match}
