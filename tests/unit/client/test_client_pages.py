"""Lists over all their pages, with word of what could not be told."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import runs_pb2 as pb

PAGES = {
    "": pb.ListRunsResponse(runs=[pb.Run(name="runs/a")], next_page_token="2"),
    "2": pb.ListRunsResponse(unreachable=["runs/b"], next_page_token="3"),
    "3": pb.ListRunsResponse(runs=[pb.Run(name="runs/c")]),
}


async def listed(kind: str) -> list[str]:
    request = pb.ListRunsRequest()
    if kind == "blocking":
        whole: Any = Pager(lambda asked: PAGES[asked.page_token], request, "runs")
        return [run.name for run in whole]

    async def call(asked: Any) -> Any:
        return PAGES[asked.page_token]

    pages: Any = AsyncPager(call, request, "runs")
    return [run.name async for run in pages]


@pytest.mark.parametrize("kind", ["blocking", "async"])
async def test_a_list_is_not_taken_for_whole(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "plinth.client"):
        assert await listed(kind) == ["runs/a", "runs/c"]
    (said,) = caplog.messages
    assert said.startswith("runs/b is not listed: its record is damaged")
