"""The JSON of a whole answer in pieces, and the response that sends them.

Log-probs with their alternatives make megabytes of it: as one object it would be ten times as
large, and to write that would stop every stream.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plinth.shared.tasks import next_turn

PIECE_BYTES = 64 << 10


class AnswerBody:
    """Bytes of JSON, in pieces of some PIECE_BYTES."""

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self._open = bytearray()

    def __bool__(self) -> bool:
        return bool(self.pieces or self._open)

    def add(self, text: bytes) -> None:
        """Adds JSON text at its end."""
        if len(text) >= PIECE_BYTES:  # a piece as it is: not copied
            self.end()
            self.pieces.append(text)
            return
        self._open += text
        if len(self._open) >= PIECE_BYTES:
            self.end()

    def end(self) -> None:
        """Closes the last piece."""
        if self._open:
            self.pieces.append(bytes(self._open))
            self._open.clear()

    def add_value(self, value: Any) -> None:
        """Adds a value, in which there may be encoded lists."""
        for text in _texts(value):
            self.add(text)


class EncodedList:
    """A JSON list of which the items are written already. It is one value of a larger one, whose
    body takes the pieces out of it."""

    def __init__(self) -> None:
        self._body = AnswerBody()

    def __bool__(self) -> bool:
        return bool(self._body)

    def extend(self, items: Sequence[Any]) -> None:
        """Adds `items` at its end."""
        if items:
            self._body.add((b"," if self._body else b"") + encoded(items)[1:-1])

    def taken(self) -> Iterator[bytes]:
        """Its JSON, which it has no more then."""
        self._body.end()
        yield b"["
        while self._body.pieces:
            yield self._body.pieces.popleft()
        yield b"]"


def encoded(value: Any) -> bytes:
    """`value` as Starlette's JSONResponse writes it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _texts(value: Any) -> Iterator[bytes]:
    if isinstance(value, EncodedList):
        yield from value.taken()
    elif isinstance(value, dict) and any(
        isinstance(item, dict | EncodedList) for item in value.values()
    ):
        for index, (key, item) in enumerate(value.items()):
            yield (b"," if index else b"{") + encoded(key) + b":"
            yield from _texts(item)
        yield b"}"
    else:
        yield encoded(value)


class WholeAnswer(Response):
    """Sends `pieces` as one body of known length, and lets go of each."""

    media_type = "application/json"

    def __init__(self, pieces: deque[bytes], headers: Mapping[str, str]) -> None:
        length = str(sum(map(len, pieces)))
        super().__init__(headers={**headers, "content-length": length})
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        while self._pieces:
            piece = self._pieces.popleft()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await next_turn()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
