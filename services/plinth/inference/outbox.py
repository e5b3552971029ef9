"""What the engine has made for one request and nobody has read yet.

The engine waits for no reader: one that falls behind by more than `UNREAD_TOKENS` has its request
ended, so that its blocks are free for others, and is told so behind what was made. Whoever wants
the rest asks again with those tokens and gets it, to the same bits and mostly from the prefix
cache. That is cheaper and simpler than a sequence that stands still: it would keep its blocks, or
give them up and compute them again just the same.
"""

from __future__ import annotations

import asyncio

from plinth.engine.request import Event, TokensEvent

# Beyond what gRPC's window holds: some seconds of a model, a megabyte with 20 alternatives each.
UNREAD_TOKENS = 512


class ReaderBehind(TokensEvent):
    """The last event of a request that was ended since its events were not read."""


class Outbox:
    """A queue that knows how many tokens are in it. Belongs to the event loop."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._tokens = 0

    @property
    def full(self) -> bool:
        """Whether the reader is too far behind."""
        return self._tokens > UNREAD_TOKENS

    def put(self, item: Event | Exception) -> None:
        """At the end."""
        if isinstance(item, TokensEvent):
            self._tokens += len(item.tokens)
        self._queue.put_nowait(item)

    async def get(self) -> Event | Exception:
        """The oldest, once there is one."""
        item = await self._queue.get()
        if isinstance(item, TokensEvent):
            self._tokens -= len(item.tokens)
        return item
