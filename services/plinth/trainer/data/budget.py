"""`max_bytes` of a corpus: what it has room for."""

from __future__ import annotations

from dataclasses import replace

from plinth.trainer.data.documents import Document

_FULL = 0.99  # of max_bytes: little is left to fill
_IN_A_ROW = 100


class Budget:
    """Counts bytes of documents up to `most` (0: no limit).

    Of a text that no longer fits the beginning is taken, up to the end of a line, and the budget is
    done. A chat or a pair is taken whole or not at all: one that does not fit is passed over, and
    smaller ones fill the rest, until 1 % is left or `_IN_A_ROW` had no room one after another.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self.done = False
        self.smallest = 0  # bytes of the smallest document that was passed over
        self._passed = self._in_a_row = self._cut = 0

    def fit(self, document: Document) -> Document | None:
        """The document, its beginning, or None."""
        size, room = document.size, self.most - self.taken
        if not self.most or size <= room:
            self.taken += size
            self._in_a_row = 0
            self.done = bool(self.most) and self.taken == self.most
            return document
        if document.form == "text":
            self.done = True
            if begin := _beginning(document.text, room):
                self._cut += 1
                self.taken += len(begin.encode())
                return replace(document, text=begin)
        self._passed += 1
        self._in_a_row += 1
        self.smallest = min(size, self.smallest or size)
        full = self.taken >= _FULL * self.most or self._in_a_row == _IN_A_ROW
        self.done = self.done or full
        return None

    def notes(self) -> dict[str, int]:
        """What became of documents that did not fit."""
        told = {"cut at max_bytes": self._cut, "too large for what max_bytes left": self._passed}
        return {what: count for what, count in told.items() if count}


def _beginning(text: str, room: int) -> str:
    """As many whole lines as fit into `room` bytes; of a text without any, whole characters."""
    fitting = text.encode()[:room].decode("utf-8", "ignore")
    lines = fitting.rpartition("\n")[0].strip("\n")
    begin = lines if lines.strip() else fitting
    return begin if begin.strip() else ""
