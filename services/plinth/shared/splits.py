"""What is held out: by prompt, so that nothing that is measured was learned from.

The key of a conversation is its opening: the turns up to and with the last one before the first
answer to a user. So chats, pairs and prompts that begin alike have one key, however they go on. Of
a plain text the key is the text. Keys are of normalised text (`normalised`): what differs in case,
in white space or in the form of its characters only is the same prompt.

A key's hash decides its side, whatever the rest of the data is, and the same prompt is held out of
every dataset that is split at the same fraction.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import takewhile

from plinth.shared.errors import InvalidArgument

SPLITS = ("train", "validation")
# A side may differ by so much of what was asked for before the hash alone no longer decides.
_TOLERANCE = 0.5
_SHOWN = 80


def normalised(text: str) -> str:
    """Unicode's compatibility form (NFKC), case folded, each run of white space one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def opening(turns: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The (role, content) turns that are there before the first answer to a user; a greeting of
    the assistant's before the user's first word is among them."""
    asked = False

    def before_answer(turn: tuple[str, str]) -> bool:
        nonlocal asked
        asked = asked or turn[0] == "user"
        return not (asked and turn[0] == "assistant")

    return tuple(takewhile(before_answer, turns))


def prompt_key(turns: Iterable[tuple[str, str]]) -> bytes:
    """16 bytes that a conversation shares with all that open alike."""
    told = [[role, normalised(content)] for role, content in opening(turns)]
    return blake2b(json.dumps(told, ensure_ascii=False).encode(), digest_size=16).digest()


def text_key(text: str) -> bytes:
    """16 bytes that a text shares with those that are equal but for case and white space."""
    return blake2b(normalised(text).encode(), digest_size=16).digest()


def split_share(key: bytes) -> float:
    """A key's place in [0, 1): below the fraction to hold out, it is held out."""
    return int.from_bytes(key[:8], "big") / 2**64


def held_out(sizes: Mapping[bytes, int], fraction: float) -> set[bytes]:
    """The keys to hold out, of `sizes` (key → bytes): those whose hash lies below `fraction`.

    Where these are not about that share of the bytes (few keys, or one that outweighs the others),
    keys are taken in the order of their hashes, and each only if that brings the share nearer. Of
    two keys or more one at least is held out, the smallest if each is too large.
    """
    if fraction <= 0:
        return set()
    chosen = {key for key in sizes if split_share(key) < fraction}
    wanted = fraction * sum(sizes.values())
    if abs(sum(sizes[key] for key in chosen) - wanted) <= _TOLERANCE * wanted:
        return chosen
    chosen, held = set(), 0
    for key in sorted(sizes, key=split_share):
        if held + sizes[key] / 2 < wanted:
            chosen.add(key)
            held += sizes[key]
    if not chosen and len(sizes) > 1:
        chosen = {min(sizes, key=lambda key: (sizes[key], key))}
    return chosen


class Overlap:
    """Told the keys of one split after another, refuses what two of them share."""

    def __init__(self, source: str, unit: str) -> None:
        """`source` names the data in errors; `unit` is what is split: "prompt" or "text"."""
        self._source, self._unit = source, unit
        self._seen: dict[bytes, str] = {}

    def add(self, split: str, key: bytes, words: str) -> None:
        """InvalidArgument (SPLITS_OVERLAP) where `key`, which stands for `words`, was seen in
        another split."""
        first = self._seen.setdefault(key, split)
        if first != split:
            raise InvalidArgument(
                f"{self._source}: the {self._unit} {words[:_SHOWN]!r} is in {first} and in "
                f"{split}, so what is measured would be what was learned; split it by prompt "
                "(a step `data` does, and a file of prompts must hold each once)",
                reason="SPLITS_OVERLAP",
            )
