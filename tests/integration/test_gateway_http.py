"""The REST API's HTTP: bounds on what a client sends, framing, browsers, probes, TLS."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio

from gateway_stages import Stack, running_stack
from patience import PATIENCE_S
from plinth.gateway.rest import http_protocol

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_HEADERS = 20
MAX_HEADER_BYTES = 8192
MAX_CONNECTIONS = 16
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
GET = b"GET /healthz HTTP/1.1\r\nhost: a\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """With bounds that a test reaches soon."""
    async with running_stack(
        tmp_path_factory.mktemp("http"),
        redis_server,
        max_headers=MAX_HEADERS,
        max_header_bytes=MAX_HEADER_BYTES,
        max_connections=MAX_CONNECTIONS,
        head_timeout_s=0.3,
        body_timeout_s=0.3,
        keep_alive_s=30,
    ) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def http(gateway: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http() as client:
        yield client


async def opened(gateway: Stack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(gateway.url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def ended(gateway: Stack, sent: bytes) -> bytes:
    """What the gateway says to `sent` until it closes."""
    reader, writer = await opened(gateway)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.close()


def post(key: str, body: bytes, version: str = "1.1", more: str = "") -> bytes:
    head = (
        f"POST {CHAT} HTTP/{version}\r\nhost: a\r\nauthorization: Bearer {key}\r\n{more}"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n"
)
LONG = b"a" * (MAX_HEADER_BYTES + http_protocol.READ_BYTES)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(GET + b"x-long: " + LONG, 431, id="one header"),
        pytest.param(GET + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431, id="many headers"),
        pytest.param(b"GET /" + LONG, 431, id="the path"),
        pytest.param(b"\r\n" * len(LONG), 431, id="empty lines before"),
        pytest.param(GET, 408, id="half a head"),
        pytest.param(b"nonsense\r\n\r\n", 400, id="nonsense"),
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"\r\n", 0, id="an empty line"),
    ],
)
async def test_a_head_has_bounds(gateway: Stack, sent: bytes, status: int) -> None:
    answer = await ended(gateway, sent)
    if not status:
        assert answer == b""  # closed, in time
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nx-request-id: " in head
    assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"2;x=" + LONG, id="a chunk's extension"),
        pytest.param(b"0\r\nx-trailer: " + LONG, id="a trailer"),
        pytest.param(b"0\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1), id="trailers"),
        pytest.param(b"", id="half a body"),
    ],
)
async def test_a_body_has_bounds(gateway: Stack, tail: bytes) -> None:
    assert b"x-request-id" in await ended(gateway, CHUNKED + tail)


async def test_half_a_body_of_a_client_with_a_key_is_a_408(gateway: Stack) -> None:
    sent = post(gateway.key, json.dumps(BODY).encode())
    answer = await ended(gateway, sent[:-5])
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_clients_that_wait_make_room_for_those_that_come(
    gateway: Stack, http: httpx.AsyncClient
) -> None:
    gateway.shard.delay_s = 0.01
    idle = []
    try:
        async with http.stream(
            "POST", CHAT, json={**BODY, "stream": True, "max_tokens": 100}
        ) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            for _ in range(3 * MAX_CONNECTIONS):
                idle.append(await opened(gateway))
            async with httpx.AsyncClient() as other:
                assert (await other.get(f"{gateway.url}/readyz")).status_code == 200
            assert "data: [DONE]" in [line async for line in lines]
    finally:
        gateway.shard.delay_s = 0
        for _reader, writer in idle:
            writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0_has_no_chunks(gateway: Stack, stream: bool) -> None:
    body = {**BODY, "max_tokens": 3, "stream": stream}
    answer = await ended(gateway, post(gateway.key, json.dumps(body).encode(), "1.0"))
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    if stream:
        assert text.startswith(b"data: {")
        assert text.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(text)["choices"]


async def test_requests_on_one_connection_are_all_answered(gateway: Stack) -> None:
    ask = GET + b"\r\n"
    answer = await ended(gateway, ask * 3 + GET + b"connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 4


async def test_half_a_request_behind_a_stream_leaves_it_alone(gateway: Stack) -> None:
    gateway.shard.delay_s = 0.01
    try:
        body = {**BODY, "max_tokens": 100, "stream": True}
        sent = post(gateway.key, json.dumps(body).encode())
        assert b"data: [DONE]" in await ended(gateway, sent + GET)
    finally:
        gateway.shard.delay_s = 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/ping", "/metrics"])
async def test_probes_answer_get_and_head(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.get(path)).status_code == 200
    assert (await http.head(path)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models/", f"{CHAT}/", "/healthz/"])
async def test_a_slash_at_the_end_redirects_nobody(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path, headers={"host": "evil.example"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]
    assert "location" not in answer.headers


async def test_metrics_are_made_off_the_loop(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs under a collector holds up nobody but the scrape."""
    loop = asyncio.get_running_loop()
    entered = asyncio.Event()
    reading, writing = os.pipe()

    def hang(_folder: Any) -> Any:
        loop.call_soon_threadsafe(entered.set)
        os.read(reading, 1)
        raise OSError

    monkeypatch.setattr("plinth.shared.vital_signs.os.statvfs", hang)
    scrape = asyncio.create_task(http.get("/metrics"))
    try:
        await asyncio.wait_for(entered.wait(), PATIENCE_S)
        assert (await http.get("/healthz")).status_code == 200
    finally:
        os.close(writing)  # every read ends, however many stacks of this process are looked at
        assert (await scrape).status_code == 200
        os.close(reading)


ORIGIN = {"origin": "https://app.example.com"}


async def test_a_page_of_another_origin_may_ask(http: httpx.AsyncClient) -> None:
    ask = {
        **ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    answer = await http.options(CHAT, headers=ask)
    assert answer.status_code == 200
    allowed = answer.headers["access-control-allow-headers"]
    assert {"authorization", "content-type", "x-stainless-os"} <= set(allowed.split(","))
    for wrong in (BODY, {}):
        answer = await http.post(CHAT, json=wrong, headers=ORIGIN)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("gateway_settings", "allowed"),
    [
        ({"auth": "off"}, None),
        ({"cors_origins": []}, None),
        ({"cors_origins": ["https://other.example"]}, None),
        ({"auth": "off", "cors_origins": [ORIGIN["origin"]]}, ORIGIN["origin"]),
    ],
)
async def test_origins_are_as_set(
    redis_server: str, tmp_path: Path, gateway_settings: dict[str, Any], allowed: str | None
) -> None:
    async with (
        running_stack(tmp_path, redis_server, **gateway_settings) as stack,
        httpx.AsyncClient() as client,
    ):
        answer = await client.get(f"{stack.url}/healthz", headers=ORIGIN)
        assert answer.headers.get("access-control-allow-origin") == allowed


# What a browser sends without asking first: no JSON, and nothing but its origin to tell it by.
SIMPLE = {"content-type": "text/plain"}
ASKED = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", ""])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/preferences/judgements"])
async def test_without_keys_a_page_of_another_origin_does_nothing(
    keyless: Stack, path: str, origin: str
) -> None:
    """Not only can it not read the answer: nothing is done."""
    asked = len(keyless.shard.requests)
    async with httpx.AsyncClient(base_url=keyless.url, timeout=PATIENCE_S) as client:
        answer = await client.post(
            path, content=json.dumps(ASKED), headers=SIMPLE | {"origin": origin}
        )
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"]["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in answer.headers
        assert len(keyless.shard.requests) == asked
        counted = (await client.get("/metrics")).text
        assert f'plinth_requests_total{{api="rest",code="403",path="{path}"' in counted
        if "chat" in path:
            answer = await client.post(path, content=json.dumps(ASKED), headers=SIMPLE | ORIGIN)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("[::1]:8080", 200),
        ("plinth.localhost", 200),
        ("app.example.com", 200),  # of an origin that may ask: behind its proxy
        ("evil.example:8080", 403),  # whose address was made ours after the page was loaded
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::1", 403),
    ],
)
async def test_without_keys_nobody_comes_under_a_name_of_their_own(
    keyless: Stack, host: str, status: int
) -> None:
    async with httpx.AsyncClient(base_url=keyless.url) as client:
        answer = await client.get("/v1/models", headers={"host": host}, timeout=PATIENCE_S)
    assert answer.status_code == status, answer.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyless(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    folder = tmp_path_factory.mktemp("keyless")
    origins = [ORIGIN["origin"]]
    async with running_stack(folder, redis_server, auth="off", cors_origins=origins) as stack:
        yield stack
