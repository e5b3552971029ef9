"""Several requests on one connection, whose client goes, or breaks HTTP, in the first's answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from gateway_stages import Stack, running_stack
from patience import PATIENCE_S
from plinth.gateway import metrics

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBE = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"
GARBAGE = b"\x00\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path_factory.mktemp("pipelines"), redis_server) as stack:
        stack.shard.delay_s = 0.01
        yield stack


async def opened(gateway: Stack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(gateway.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def endless(gateway: Stack) -> bytes:
    """A stream that ends by the context alone, in some 40 s."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    sent = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {gateway.key}\r\n"
        f"content-length: {len(sent)}\r\n\r\n"
    )
    return head.encode() + sent


def crashes() -> float:
    """Requests that are counted as the gateway's own fault."""
    samples = (s for metric in metrics.REQUESTS.collect() for s in metric.samples)
    return sum(
        s.value
        for s in samples
        if s.name.endswith("_total") and s.labels["code"].startswith(("5", "STREAM_"))
    )


async def until_idle(gateway: Stack, cancelled: int) -> None:
    """Until the shard was told to end a stream; its own end would not count."""
    async with asyncio.timeout(PATIENCE_S):
        while gateway.shard.running or gateway.shard.cancelled == cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("behind", [0, 1, 3])
async def test_the_stream_of_a_client_that_is_gone_ends(gateway: Stack, behind: int) -> None:
    cancelled, before = gateway.shard.cancelled, crashes()
    reader, writer = await opened(gateway)
    writer.write(endless(gateway) + PROBE * behind)
    assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"data: "), PATIENCE_S)
    writer.close()
    await writer.wait_closed()
    await until_idle(gateway, cancelled)
    assert crashes() == before


@pytest.mark.parametrize("behind", [0, 1, 3])
async def test_who_breaks_http_behind_a_stream_ends_it(gateway: Stack, behind: int) -> None:
    cancelled, before = gateway.shard.cancelled, crashes()
    reader, writer = await opened(gateway)
    writer.write(endless(gateway) + PROBE * behind)
    await asyncio.wait_for(reader.readuntil(b"data: "), PATIENCE_S)
    writer.write(GARBAGE)
    await asyncio.wait_for(reader.read(), PATIENCE_S)
    await until_idle(gateway, cancelled)
    assert crashes() == before
    writer.close()


@pytest.mark.parametrize("probes", [1, 2, 20])
async def test_who_breaks_http_behind_short_requests_crashes_none(
    gateway: Stack, probes: int
) -> None:
    before = crashes()
    reader, writer = await opened(gateway)
    writer.write(PROBE * probes + GARBAGE)
    await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    await writer.wait_closed()
    assert crashes() == before


async def test_requests_behind_a_stream_are_answered_after_it(gateway: Stack) -> None:
    gateway.shard.end_after = 20
    try:
        reader, writer = await opened(gateway)
        last = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        writer.write(endless(gateway) + PROBE + last)
        said = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert said.count(b"HTTP/1.1 200 OK") == 3
        assert said.index(b"[DONE]") < said.index(b'{"status"')
        writer.close()
    finally:
        gateway.shard.end_after = 0
