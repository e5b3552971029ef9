"""Heartbeats of a watch: responses that tell nothing while nothing changes, so that a client can
tell a quiet stream from one that is dead. Knows no messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from plinth.shared.tasks import cancel_and_wait

T = TypeVar("T")
# The protos promise one every 15 s; what lies between has to be on its way by then.
EVERY_S = 10.0


async def with_heartbeats(
    changes: AsyncGenerator[tuple[str, T], None], position: str, *, every_s: float = EVERY_S
) -> AsyncGenerator[tuple[str, T | None], None]:
    """(position, change) of each change, and (position, None), with the last one's position, when
    none has come for `every_s`. position: where the watch begins."""
    coming: asyncio.Task[tuple[str, T]] | None = None
    async with aclosing(changes):
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(changes))
                done, _ = await asyncio.wait({coming}, timeout=every_s)
                if not done:
                    yield position, None
                    continue
                ended, coming = coming, None
                try:
                    position, change = ended.result()
                except StopAsyncIteration:
                    return
                yield position, change
        finally:
            if coming is not None:
                await cancel_and_wait(coming)
