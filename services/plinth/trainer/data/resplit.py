"""How a corpus is split where the hash of its prompts alone would hold out far too much or nothing:
it is small, or one text outweighs the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from plinth.shared.splits import held_out, split_share
from plinth.trainer.data.documents import Document
from plinth.trainer.data.joined import Joined

# Bytes of the end of a text that are worth holding out by themselves.
_LEAST_TAIL = 256


@dataclass(frozen=True)
class Sides:
    """On which side documents land. Of the text `cut` the last `tail` bytes are held out, up to
    the begin of a line, and `chosen` is empty."""

    chosen: frozenset[bytes]
    cut: bytes | None = None
    tail: int = 0

    def of(self, document: Document) -> Iterator[tuple[str, Document]]:
        """(split, document), twice for the one that is cut."""
        key = document.split_key()
        if key == self.cut:
            begin, end = _cut(document.text, self.tail)
            yield "train", replace(document, text=begin)
            yield "validation", replace(document, text=end)
        else:
            yield "validation" if key in self.chosen else "train", document


def by_hash(sizes: Mapping[bytes, int], fraction: float) -> Sides:
    """As documents are split while they are read."""
    return Sides(frozenset(key for key in sizes if split_share(key) < fraction))


def settled(sizes: Mapping[bytes, int], fraction: float, form: str, joined: Joined) -> Sides:
    """As they are to be split once all `sizes` (key → bytes) are known: what `held_out` chooses of
    what is `joined`. Where the least of texts is more than twice what is to be held out, the end of
    the largest; of a group no text is cut, since all of it is on one side."""
    names, whole = joined.names(sizes), dict[bytes, int]()
    for key, name in names.items():
        whole[name] = whole.get(name, 0) + sizes[key]
    chosen = held_out(whole, fraction)
    wanted = fraction * sum(sizes.values())
    tail = max(_LEAST_TAIL, round(wanted))
    held = sum(whole[name] for name in chosen)
    if form == "text" and fraction > 0 and (not chosen or held > 2 * wanted):
        texts = (key for key in sizes if names[key] == key and not joined.is_group(key))
        largest = max(texts, key=lambda key: (sizes[key], key), default=None)
        if largest and 2 * tail <= sizes[largest] and (not chosen or tail < held):
            return Sides(frozenset(), largest, tail)
    return Sides(frozenset(key for key, name in names.items() if name in chosen))


def _cut(text: str, tail: int) -> tuple[str, str]:
    """(begin, end): the end has `tail` bytes or more, from the begin of a line; where that leaves
    less than half for the begin, from a space or a character."""
    raw = text.encode()
    at = len(raw) - tail
    for mark in (b"\n", b" "):
        place = raw.rfind(mark, 0, at) + 1
        begin, end = raw[:place].decode(), raw[place:].decode()
        if 2 * place >= len(raw) and begin.strip() and end.strip():
            return begin.strip("\n"), end.strip("\n")
    while raw[at] & 0xC0 == 0x80:  # inside a character
        at -= 1
    return raw[:at].decode(), raw[at:].decode()
