"""Lists that come in pages, as iterators over all of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar

_log = logging.getLogger("plinth.client")
Item = TypeVar("Item")
Page = TypeVar("Page")


class Pager(Generic[Item, Page]):
    """What a list has, over as many calls as it takes. Iterating twice asks twice."""

    def __init__(self, call: Callable[[Any], Any], request: Any, items: str) -> None:
        """items: the response's field that holds a page's."""
        self._call, self._request, self._items = call, request, items

    def __iter__(self) -> Iterator[Item]:
        for page in self.pages():
            yield from getattr(page, self._items)

    def pages(self) -> Iterator[Page]:
        """The responses, for what they hold beside their items."""
        asked = _copy(self._request)
        while True:
            page = self._call(asked)
            _warn(page)
            yield page
            if not page.next_page_token:
                return
            asked.page_token = page.next_page_token


class AsyncPager(Generic[Item, Page]):
    """The same, for `async for`."""

    def __init__(self, call: Callable[[Any], Awaitable[Any]], request: Any, items: str) -> None:
        self._call, self._request, self._items = call, request, items

    async def __aiter__(self) -> AsyncIterator[Item]:
        async for page in self.pages():
            for item in getattr(page, self._items):
                yield item

    async def pages(self) -> AsyncIterator[Page]:
        asked = _copy(self._request)
        while True:
            page = await self._call(asked)
            _warn(page)
            yield page
            if not page.next_page_token:
                return
            asked.page_token = page.next_page_token


def _warn(page: Any) -> None:
    """Of what a list could not tell, so that nobody takes it for whole."""
    for name in getattr(page, "unreachable", ()):
        _log.warning("%s is not listed: its record is damaged; get it for what is wrong", name)


def _copy(request: Any) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy
