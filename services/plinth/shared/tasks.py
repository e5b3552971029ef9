"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 0.5
_ending: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancels the tasks and returns when all have ended; what they raised is not raised here.

    A cancellation can get lost on its way: up to Python 3.11 `asyncio.wait_for` (which redis-py
    awaits replies with) drops one that arrives together with the result (cpython#86296). So it
    is sent again until the task has ended.

    CancelledError, when this call is cancelled itself, comes once all have ended too, and not
    before: whoever ends the caller closes the connections that the tasks use right afterwards.
    A time limit around this call therefore shortens nothing.
    """
    waiting = {task for task in tasks if not task.done()}
    cancelled = False
    while waiting:
        for task in waiting:
            task.cancel()
        try:
            await asyncio.wait(waiting, timeout=_AGAIN_S)
        except asyncio.CancelledError:  # often from a call like this one, which sends again
            cancelled = True
        waiting = {task for task in waiting if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: asyncio need not complain that nobody looked
    if cancelled:
        raise asyncio.CancelledError


def cancel_for_certain(*tasks: asyncio.Future[Any]) -> None:
    """The same without waiting, for whoever may be cancelled already: it goes on behind."""
    ending = asyncio.create_task(cancel_and_wait(*tasks))
    _ending.add(ending)
    ending.add_done_callback(_ending.discard)


async def next_turn() -> None:
    """Lets all else that is ready run first: between the steps of what is long."""
    await asyncio.sleep(0)
