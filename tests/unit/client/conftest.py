"""Fixtures of both clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from both_clients import Asynchronous, Blocking, Connect


@pytest.fixture(params=[Blocking, Asynchronous], ids=["blocking", "async"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    made: list[Any] = []

    def make(*given: Any, **named: Any) -> Any:
        made.append(request.param(*given, **named))
        return made[-1]

    yield make
    for one in made:
        await one.close()
