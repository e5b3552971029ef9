from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coordinator_replica import Coordinator
from scripted_stages import World


@pytest.fixture
async def world(redis_client: Redis, redis_server: str, tmp_path: Path) -> AsyncIterator[World]:
    async with World(tmp_path, redis_server) as world:
        yield world


@pytest.fixture
async def coordinator(world: World) -> AsyncIterator[Coordinator]:
    """One replica, which leads."""
    coordinator = Coordinator(world, "one")
    await coordinator.start()
    yield coordinator
    await coordinator.stop()
