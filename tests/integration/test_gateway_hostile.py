"""Hostile clients cost the gateway little at a time, little memory, and its other clients nothing.

Each attack runs beside a neighbour's stream; what an attack may cost stands in `hostile.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
import pytest_asyncio

from hostile import WatchedGateway, watched_gateway
from hostile_bodies import ANSWERED, REFUSED, TAKEN, TOKENIZED
from patience import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WatchedGateway]:
    folder = tmp_path_factory.mktemp("hostile")
    async with watched_gateway(
        folder, redis_server, max_connections=100, head_timeout_s=2
    ) as gateway:
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


async def half_heads(gateway: WatchedGateway) -> None:
    """A thousand connections that each say half a request, and then nothing."""
    opened = []
    try:
        for _ in range(1000):
            opened.append(await connect(gateway))
            with suppress(ConnectionError):
                opened[-1][1].write(b"GET /healthz HTTP/1.1\r\nhost: ")
    finally:
        for _reader, writer in opened:
            writer.close()


async def tiny_chunks(gateway: WatchedGateway) -> None:
    """A body of a million chunks of one byte."""
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n"
    key = f"authorization: Bearer {gateway.stack.key}\r\nconnection: close\r\n\r\n"
    await said(gateway, (head + key).encode(), *[b"1\r\na\r\n" * 50_000] * 20, b"0\r\n\r\n")


async def many_at_once(gateway: WatchedGateway) -> None:
    """Twenty thousand requests on one connection, before the first is answered."""
    await said(gateway, *[b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n" * 2000] * 10)


async def large_metadata(gateway: WatchedGateway) -> None:
    """gRPC's headers: a megabyte in each of forty calls."""
    async with grpc.aio.insecure_channel(gateway.stack.grpc_address) as channel:
        method = channel.unary_unary("/plinth.v1.ModelService/ListModels")
        large = tuple((f"x-{number}", "a" * 100_000) for number in range(10))
        calls = [method(b"", metadata=large, timeout=PATIENCE_S) for _ in range(40)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(end, grpc.aio.AioRpcError) for end in ends)


ATTACKS = [endless_header, many_headers, half_heads, tiny_chunks, many_at_once, large_metadata]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_costs_little(
    gateway: WatchedGateway, attack: Callable[[WatchedGateway], Awaitable[object]]
) -> None:
    await gateway.survives(lambda: attack(gateway))


async def posted(gateway: WatchedGateway, path: str, body: bytes) -> tuple[int, int]:
    """The status, and how many bytes the answer has, none of which is kept."""
    headers = {"authorization": f"Bearer {gateway.stack.key}", "content-type": "application/json"}
    async with (
        httpx.AsyncClient(timeout=PATIENCE_S) as client,
        client.stream("POST", gateway.stack.url + path, content=body, headers=headers) as answer,
    ):
        return answer.status_code, sum([len(part) async for part in answer.aiter_raw()])


SHORT = {"objects for prompts", "wide text", "ids for eight answers", "eight whole chats"}
BODIES = {**REFUSED, **TOKENIZED, **TAKEN, **ANSWERED}


@pytest.mark.parametrize(
    "name",
    [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in BODIES],
)
async def test_a_body_costs_little(gateway: WatchedGateway, name: str) -> None:
    answers: list[tuple[int, int]] = []

    async def attack() -> None:
        answers.append(await posted(gateway, *BODIES[name]))

    await gateway.survives(attack)
    statuses = {status for status, _size in answers}
    assert statuses <= ({400} if name in REFUSED else {200, 400})
    if name in TAKEN or name in ANSWERED:
        assert statuses == {200}
    if name in ANSWERED:
        assert min(size for _status, size in answers) > 1_000_000
