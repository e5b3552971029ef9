"""News of records that change, read from one bounded stream in Redis once for all who wait.

Whoever changes a record appends its id to the stream. A read that blocks holds a connection, and a
process has few of them (`connection.py`): were each watcher to block on its own, as many watchers
as there are connections would keep the process from Redis altogether. Knows no records.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Any

from redis.asyncio import Redis

from plinth.shared.connection import redis_errors
from plinth.shared.errors import Unavailable


class ChangeFeed:
    """Follows one stream for all waiters of this process; each of its entries has one field, the id
    of what changed."""

    # A waiter looks again after this long even without news (the stream is bounded).
    PATIENCE_S = 5.0
    _KNOWN = 4096

    def __init__(self, redis: Redis, stream: str) -> None:
        self._redis, self._stream = redis, stream
        self._news = asyncio.Condition()
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._count = 0
        self._last = b"0-0"

    def seen(self, changed: str) -> int:
        """A mark to wait from; take it before reading the record."""
        return self._changes.get(changed, 0)

    async def changed(self, changed: str, seen: int) -> None:
        """Returns when the record changed after `seen`, or after PATIENCE_S."""
        try:
            async with asyncio.timeout(self.PATIENCE_S), self._news:
                await self._news.wait_for(lambda: self.seen(changed) > seen)
        except TimeoutError:
            return

    async def any_change(self, count: int) -> int:
        """Waits for a change of any record after `count`, at most PATIENCE_S; the count now."""
        try:
            async with asyncio.timeout(self.PATIENCE_S), self._news:
                await self._news.wait_for(lambda: self._count > count)
        except TimeoutError:
            pass
        return self._count

    async def open(self) -> None:
        """Finds the stream's end: changes from here on will be told."""
        with redis_errors():
            newest: Any = await self._redis.xrevrange(self._stream, count=1)
        self._last = newest[0][0] if newest else b"0-0"

    async def follow(self) -> None:
        """Reads the stream from where `open` found its end, until cancelled; waits while Redis
        is gone."""
        while True:
            began = time.monotonic()
            try:
                with redis_errors():
                    answer: Any = await self._redis.xread(
                        {self._stream: self._last}, count=500, block=2000
                    )
            except Unavailable:
                await asyncio.sleep(max(0.0, 0.5 - (time.monotonic() - began)))
                continue
            for _, entries in answer or ():
                self._last = entries[-1][0]
                await self._tell([id_.decode() for _, fields in entries for id_ in fields.values()])

    async def _tell(self, changes: list[str]) -> None:
        async with self._news:
            for changed in changes:
                self._count += 1
                self._changes[changed] = self._count
                self._changes.move_to_end(changed)
            while len(self._changes) > self._KNOWN:
                self._changes.popitem(last=False)
            self._news.notify_all()
