"""A page that ends early goes on where it ended: nothing is passed over, nothing comes twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from plinth.shared.api import listing
from plinth.shared.api.listing import Damaged, page_of
from plinth.shared.api.paging import Pages
from plinth.v1 import runs_pb2 as pb

PAGES = Pages("s" * 32, most=100)


class Source:
    """`count` runs, of which every 7th has gone; counts what was read at once."""

    def __init__(self, count: int, text: str = "") -> None:
        self._count, self._text = count, text
        self.most = 0

    async def read(self, position: str, count: int) -> Sequence[tuple[str, pb.Run | None]]:
        begin = int(position or 0)
        found = range(begin, min(begin + count, self._count))
        self.most = max(self.most, len(found))
        spec = pb.RunSpec(pipeline_yaml=self._text)
        return [
            (str(at + 1), None if at % 7 == 0 else pb.Run(name=f"runs/{at}", spec=spec))
            for at in found
        ]


async def all_of(source: Source, size: int, every: int = 1) -> tuple[list[int], list[int]]:
    """(numbers, sizes of pages) of each `every`-th run."""
    numbers: list[int] = []
    sizes: list[int] = []
    request = pb.ListRunsRequest(page_size=size)
    while True:
        page = await page_of(
            PAGES, request, source.read, lambda run: int(run.name.split("/")[1]) % every == 0
        )
        numbers += [int(run.name.split("/")[1]) for run in page.found]
        sizes.append(len(page.found))
        if not page.token:
            return numbers, sizes
        request.page_token = page.token


@pytest.mark.parametrize("size", [1, 3, 50, 99])
async def test_all_pages_together_are_the_list(size: int) -> None:
    source = Source(1234)
    numbers, sizes = await all_of(source, size)
    assert numbers == [at for at in range(1234) if at % 7]
    assert max(sizes) == min(size, len(numbers))
    assert source.most <= listing._PIECE


async def test_a_filter_that_passes_over_much_ends_a_page_early() -> None:
    numbers, sizes = await all_of(Source(9000), 50, every=1500)
    assert numbers == [at for at in range(0, 9000, 1500) if at % 7]
    assert len(sizes) >= 9000 // listing._LOOKED_AT


async def test_a_page_of_large_ones_is_short() -> None:
    numbers, sizes = await all_of(Source(40, "x" * 200_000), 40)
    assert numbers == [at for at in range(40) if at % 7]
    assert max(sizes) <= listing._BYTES // 200_000 + 1


async def test_what_is_damaged_hides_nothing_and_is_named_once() -> None:
    async def read(position: str, count: int) -> Sequence[tuple[str, pb.Run | Damaged | None]]:
        begin = int(position or 0)
        return [
            (str(at + 1), Damaged(f"runs/{at}") if at % 3 == 0 else pb.Run(name=f"runs/{at}"))
            for at in range(begin, min(begin + count, 20))
        ]

    request, told, lost = pb.ListRunsRequest(page_size=2), list[str](), list[str]()
    while True:
        page = await page_of(PAGES, request, read, lambda run: True)
        told += [run.name for run in page.found]
        lost += page.unreachable
        request.page_token = page.token
        if not page.token:
            break
    assert told == [f"runs/{at}" for at in range(20) if at % 3]
    assert lost == [f"runs/{at}" for at in range(0, 20, 3)]
