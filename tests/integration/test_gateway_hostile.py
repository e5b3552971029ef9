"""Hostile clients cost the gateway little at a time, little memory, and its other clients nothing.

Each attack runs beside a neighbour's stream; what an attack may cost stands in `hostile.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from hostile import WatchedGateway, watched_gateway
from patience import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD_S = 2.0
BODY_S = 3.0
MAX_CONNECTIONS = 60


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WatchedGateway]:
    folder = tmp_path_factory.mktemp("hostile")
    async with watched_gateway(folder, redis_server) as gateway:
        yield gateway


async def connect(gateway: WatchedGateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(gateway.stack.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def said(gateway: WatchedGateway, *pieces: bytes) -> bytes:
    """All that the gateway answers to `pieces`, until it closes."""
    reader, writer = await connect(gateway)
    try:
        with suppress(ConnectionError):  # it may close before all was sent
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        answer = b""
        with suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        return answer
    finally:
        writer.close()


def endless_header(gateway: WatchedGateway) -> Awaitable[bytes]:
    """40 MB of one header that never ends."""
    start = b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-long: "
    return said(gateway, start, *[b"a" * 400_000] * 100)


def many_headers(gateway: WatchedGateway) -> Awaitable[bytes]:
    """40 MB of small ones."""
    lines = b"".join(b"x-%d: a\r\n" % number for number in range(40_000))
    return said(gateway, b"GET /healthz HTTP/1.1\r\nhost: a\r\n", *[lines] * 100)


ATTACKS = [endless_header, many_headers]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_costs_little(
    gateway: WatchedGateway, attack: Callable[[WatchedGateway], Awaitable[bytes]]
) -> None:
    cost = await gateway.cost(lambda: attack(gateway))
    cost.check()
