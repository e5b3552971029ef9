"""One page of a list whose entries are read in pieces: no page holds more than it gives.

A filter may pass over many entries. So that one call never reads all of them, a page ends after
`_LOOKED_AT` of them, or at `_BYTES`, with fewer than were asked for (AIP-158 lets it), and the next
one goes on there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from plinth.shared.api.paging import Pages

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Damaged:
    """In the place of a resource, by its name, whose record can't be read."""

    name: str


@dataclass(frozen=True)
class Page(Generic[M]):
    """found: the resources. token: of the next page; empty: there is none. unreachable: names of
    those whose records are damaged (AIP-217): one must not hide all others."""

    found: list[M]
    token: str
    unreachable: list[str]


# (position, resource or None where it has gone), behind a position, at most so many, in order.
Read = Callable[[str, int], Awaitable[Sequence[tuple[str, M | Damaged | None]]]]

_PIECE = 50  # read at once
_LOOKED_AT = 2000
_BYTES = 1 << 20


async def page_of(
    pages: Pages, request: Any, read: Read[M], wanted: Callable[[M], bool]
) -> Page[M]:
    """The page that `request` asks for. InvalidArgument for a page_size or a page_token that is
    none of this list's."""
    size, position = pages.size(request), pages.position(request)
    found: list[M] = []
    damaged: list[str] = []
    looked_at = held = 0
    while True:
        piece = await read(position, _PIECE)
        for position, one in piece:
            looked_at += 1
            if isinstance(one, Damaged):
                damaged.append(one.name)
            elif one is not None and wanted(one):
                found.append(one)
                held += one.ByteSize()
            if len(found) == size or held >= _BYTES:
                return Page(found, pages.token(request, position), damaged)
        if len(piece) < _PIECE:
            return Page(found, "", damaged)
        if looked_at >= _LOOKED_AT:
            return Page(found, pages.token(request, position), damaged)
