"""How a document that is longer than a context is read, so that each of its tokens is judged once.

Windows overlap by half: every token but a document's first few has at least half a context before
it, at twice the price of windows that don't overlap. Pure integers; knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """ids[start:end] of a document; the tokens from `first` on are judged here."""

    start: int
    end: int
    first: int


def windows(length: int, context: int) -> Iterator[Window]:
    """Windows of at most `context` tokens over a document of `length`; they judge positions 1 to
    length - 1 once each (position 0 is context only). `context` is 2 or more."""
    end = min(context, length)
    yield Window(0, end, 1)
    while end < length:
        judged, end = end, min(end + context // 2, length)
        yield Window(max(0, end - context), end, judged)
