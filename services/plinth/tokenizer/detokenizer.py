"""Ids in, text out as it becomes complete; what comes out in pieces equals what comes at once.

Bytes that can be no UTF-8 are U+FFFD, as everywhere. A character whose last bytes never came is no
such thing: a text that ends inside it ends before it.

The kinds of vocabulary are those of `plinth.shared.token_table`.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from plinth.shared.token_table import TokenTable

_REPLACEMENT = "\ufffd"


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
        return len(_run_text(bytes(self._run)))

    def flush(self) -> str:
        """The end of the text: what is held back, without half a character at its end."""
        held, _ = self._utf8.getstate()
        self._utf8.reset()
        text = held[: complete_length(held)].decode(errors="replace")
        del self._run[complete_length(self._run) :]
        return self._stripped(text + self._end_run())

    def _step(self, id_: int, token: bytes) -> str:
        if self._table.fallback is None:
            return self._utf8.decode(token)
        if id_ in self._table.fallback:
            self._run += token
            return ""
        return self._end_run() + token.decode("utf-8")

    def _end_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        return _run_text(run)

    def _stripped(self, text: str) -> str:
        if not self._at_start or not text:
            return text
        self._at_start = False
        return text.removeprefix(" ") if self._table.strips_first_space else text


def _run_text(run: bytes) -> str:
    """A whole run of byte tokens: text if all of it is, else the tokenizers library's rule."""
    try:
        return run.decode("utf-8")
    except UnicodeDecodeError:
        return _REPLACEMENT * len(run)


def complete_length(text: bytes | bytearray) -> int:
    """Bytes of `text` without a character at its end that more bytes could complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(bytes(text))
    begun, _ = decoder.getstate()
    # Python waits for the third byte of a surrogate, which is none of UTF-8's.
    return len(text) if begun[:1] == b"\xed" and begun[1:] >= b"\xa0" else len(text) - len(begun)
