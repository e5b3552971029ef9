"""One page of a list whose entries are read in pieces: no page holds more than it gives.

A filter may pass over many entries. So that one call never reads all of them, a page ends after
`_LOOKED_AT` of them, or at `_BYTES`, with fewer than were asked for (AIP-158 lets it), and the next
one goes on there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from plinth.shared.api.paging import Pages

M = TypeVar("M", bound=Message)
# (position, resource or None where it has gone), behind a position, at most so many, in order.
Read = Callable[[str, int], Awaitable[Sequence[tuple[str, M | None]]]]

_PIECE = 50  # read at once
_LOOKED_AT = 2000
_BYTES = 1 << 20


async def page_of(
    pages: Pages, request: Any, read: Read[M], wanted: Callable[[M], bool]
) -> tuple[list[M], str]:
    """The resources of the page that `request` asks for, and the next page's token ("": none).
    InvalidArgument for a page_size or a page_token that is none of this list's."""
    size, position = pages.size(request), pages.position(request)
    found: list[M] = []
    looked_at = held = 0
    while True:
        piece = await read(position, _PIECE)
        for position, one in piece:
            looked_at += 1
            if one is not None and wanted(one):
                found.append(one)
                held += one.ByteSize()
            if len(found) == size or held >= _BYTES:
                return found, pages.token(request, position)
        if len(piece) < _PIECE:
            return found, ""
        if looked_at >= _LOOKED_AT:
            return found, pages.token(request, position)
