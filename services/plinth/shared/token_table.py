"""What each token of a vocabulary stands for, as bytes, so that text can come in pieces.

Two kinds of vocabulary: byte-level (a token is bytes, and characters may span tokens), and
SentencePiece's with byte fallback (a token is text, and only `<0xE2>` tokens are bytes). Anything
else is refused, since pieces of its text depend on what follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from plinth.shared.errors import InvalidArgument

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


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


def token_table(
    vocabulary: Mapping[str, int], description: Mapping[str, Any], limit: int, where: str
) -> TokenTable:
    """The table of a `tokenizer.json`, of which `where` says which. InvalidArgument when its
    decoder is unknown."""
    steps = _steps(description)
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        alphabet = byte_level_table()
        text = {id_: _byte_level(token, alphabet) for token, id_ in vocabulary.items()}
        return TokenTable(text, None, False, limit)
    if _is_fallback(steps):
        text = {id_: token.replace("\u2581", " ").encode() for token, id_ in vocabulary.items()}
        return TokenTable(text, _fallback_ids(vocabulary), len(steps) == 4, limit)
    kinds = ", ".join(str(step.get("type")) for step in steps) or "none"
    raise InvalidArgument(
        f"{where}: its decoder ({kinds}) is unknown; byte-level (ByteLevel) and SentencePiece's "
        "with byte fallback (Replace, ByteFallback, Fuse and Strip) can be streamed",
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


def _steps(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The decoder's steps, without sequences: one of a single step is that step."""

    def flat(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if decoder.get("type") != "Sequence":
            return [decoder]
        return [step for one in decoder.get("decoders") or [] for step in flat(one)]

    return flat(description["decoder"]) if description.get("decoder") else []


def _is_fallback(steps: Sequence[Mapping[str, Any]]) -> bool:
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
