"""A watch says that it lives while nothing changes, and loses no change by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from patience import PATIENCE_S
from plinth.shared.errors import NotFound
from plinth.shared.rpc.heartbeats import EVERY_S, with_heartbeats


class Changes:
    """Those that a test puts; None ends them."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[tuple[str, str] | Exception | None] = asyncio.Queue()
        self.closed = False

    async def told(self) -> AsyncGenerator[tuple[str, str], None]:
        try:
            while (change := await self.coming.get()) is not None:
                if isinstance(change, Exception):
                    raise change
                yield change
        finally:
            self.closed = True


async def test_heartbeats_carry_the_last_position_and_changes_come_once() -> None:
    changes = Changes()
    watch = with_heartbeats(changes.told(), "3", every_s=0.01)
    async with asyncio.timeout(PATIENCE_S):
        assert await anext(watch) == ("3", None)
        assert await anext(watch) == ("3", None)
        for number in range(4, 40):
            changes.coming.put_nowait((str(number), f"change {number}"))
            seen = [one async for one in _until_change(watch)]
            assert seen[-1] == (str(number), f"change {number}")
            assert set(seen[:-1]) <= {(str(number - 1), None)}
        changes.coming.put_nowait(None)
        assert [change async for _, change in watch if change] == []
    assert changes.closed


async def _until_change(
    watch: AsyncGenerator[tuple[str, str | None], None],
) -> AsyncGenerator[tuple[str, str | None], None]:
    while True:
        one = await anext(watch)
        yield one
        if one[1] is not None:
            return


async def test_an_error_comes_through_and_a_watcher_who_goes_ends_the_watch() -> None:
    changes = Changes()
    watch = with_heartbeats(changes.told(), "", every_s=0.01)
    async with asyncio.timeout(PATIENCE_S):
        await anext(watch)
        await watch.aclose()
        assert changes.closed
        changes = Changes()
        changes.coming.put_nowait(NotFound("gone"))
        with pytest.raises(NotFound):
            await anext(with_heartbeats(changes.told(), "", every_s=0.01))


def test_they_come_as_often_as_the_protos_promise() -> None:
    assert EVERY_S <= 15
