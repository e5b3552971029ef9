"""A whole stack with its own parts and the real model, once for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from real_stack import RealStack


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    """SmolLM2 on two shards, behind both APIs."""
    stack = RealStack.up(tmp_path_factory.mktemp("real"), shards=2)
    yield stack
    stack.down()
