"""REST connections as the settings have them: kept, counted, and believed about their clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway_stages import running_stack, until
from patience import PATIENCE_S
from plinth.gateway.rest.http_protocol import HttpProtocol
from plinth.gateway.rest.http_server import HttpServer, listen
from plinth.shared.settings_sections import GatewaySettings
from plinth.shared.tasks import cancel_and_wait

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it is told of its client."""
    found = {"client": scope["client"][0], "port": scope["client"][1], "scheme": scope["scheme"]}
    await JSONResponse(found)(scope, receive, send)


@asynccontextmanager
async def serving(app: ASGIApp = who, **settings: Any) -> AsyncIterator[str]:
    """Its URL."""
    gateway = GatewaySettings(port=0, drain_s=1, **settings)
    sock = listen(gateway.host, 0, gateway.slow_client_s)
    server = HttpServer(app, gateway)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, PATIENCE_S)
        sock.close()


async def opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)


async def test_small_writes_are_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not held back until the client has acknowledged those before: up to 40 ms an answer."""
    options: list[int] = []
    made = HttpProtocol.connection_made

    def noting(protocol: HttpProtocol, transport: asyncio.Transport) -> None:
        sock = transport.get_extra_info("socket")
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(protocol, transport)

    monkeypatch.setattr(HttpProtocol, "connection_made", noting)
    async with serving() as url, httpx.AsyncClient(timeout=PATIENCE_S) as client:
        assert (await client.get(url)).status_code == 200
    assert options
    assert all(options)


async def test_idle_connections_are_used_again_and_end_when_they_should() -> None:
    """Timers of one loop fire in their order, however busy the machine is."""
    async with serving(keep_alive_s=2) as url:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=PATIENCE_S)
        clients = [httpx.AsyncClient(limits=limits, timeout=PATIENCE_S) for _ in range(20)]
        try:
            before = [(await one.get(url)).json()["port"] for one in clients]
            await asyncio.sleep(0.5)  # idle for a quarter of it
            after = [(await one.get(url)).json()["port"] for one in clients]
            assert before == after
        finally:
            for one in clients:
                await one.aclose()
        reader, writer = await opened(url)
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"}")
        begun = asyncio.get_running_loop().time()
        later = asyncio.create_task(asyncio.sleep(4))  # less than uvicorn's own five
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        assert asyncio.get_running_loop().time() - begun > 1.9
        assert not later.done()
        await cancel_and_wait(later)
        writer.close()


def test_idle_connections_outlive_those_of_pools_and_balancers() -> None:
    """nginx's and the clouds' keep theirs for 60 s; who closes first costs the other an error."""
    server = HttpServer(who, GatewaySettings())
    assert server.config.timeout_keep_alive == GatewaySettings().keep_alive_s > 60


@pytest.mark.parametrize(
    ("trusted", "client", "scheme"),
    [
        ((), "127.0.0.1", "http"),
        (("10.0.0.0/8",), "127.0.0.1", "http"),
        (("127.0.0.1",), "192.0.2.7", "https"),
        (("127.0.0.0/8", "192.0.2.0/24"), "203.0.113.9", "https"),
    ],
)
async def test_proxies_are_believed_as_set(
    trusted: tuple[str, ...], client: str, scheme: str
) -> None:
    headers = {"x-forwarded-for": "203.0.113.9, 192.0.2.7", "x-forwarded-proto": "https"}
    async with serving(trusted_proxies=trusted) as url, httpx.AsyncClient() as http:
        told = (await http.get(url, headers=headers)).json()
    assert (told["client"], told["scheme"]) == (client, scheme)


def refused(reason: str) -> float:
    name, labels = "plinth_gateway_connections_refused_total", {"reason": reason}
    return REGISTRY.get_sample_value(name, labels) or 0.0


def connections() -> float:
    found = REGISTRY.get_sample_value("plinth_gateway_connections")
    assert found is not None
    return found


async def test_connections_are_counted_whatever_becomes_of_them() -> None:
    release = asyncio.Event()

    async def held(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await who(scope, receive, send)

    none, limit = connections(), 16
    evicted, full = refused("evicted"), refused("full")
    async with serving(held, max_connections=limit) as url:
        idle = [await opened(url) for _ in range(limit + 3)]
        await until(lambda: refused("evicted") == evicted + 3)
        await until(lambda: connections() == none + limit)
        asking = idle[3:]  # the first have gone
        for _, writer in asking:
            writer.write(GET)
        assert refused("full") == full
        await until(lambda: len(asyncio.all_tasks()) > limit)
        reader, writer = await opened(url)
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert (refused("full"), refused("evicted")) == (full + 1, evicted + 3)
        release.set()
        for one, _ in asking:
            assert b"200 OK" in await asyncio.wait_for(one.readuntil(b"}"), PATIENCE_S)
        for _, one_writer in [*idle, (reader, writer)]:
            one_writer.transport.abort()
        await until(lambda: connections() == none)


async def test_what_is_no_http_is_counted_and_fills_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = {"api": "rest", "path": "other", "code": "400", "tenant": ""}

    def counted() -> float:
        return REGISTRY.get_sample_value("plinth_requests_total", labels) or 0.0

    before = counted()
    async with serving() as url:
        for _ in range(20):
            reader, writer = await opened(url)
            writer.write(b"nonsense\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
            assert answer.startswith(b"HTTP/1.1 400 ")
            writer.close()
    assert counted() == before + 20
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_gets_so_long_and_no_longer(
    redis_server: str, tmp_path: Path, stream: bool
) -> None:
    async with (
        running_stack(tmp_path, redis_server, request_deadline_s=2) as stack,
        stack.http() as http,
    ):
        body = {"model": "chat", "prompt": "a", "stream": stream}
        short, long = {**body, "max_tokens": 2}, {**body, "max_tokens": 500}
        assert "error" not in (await http.post("/v1/completions", json=short)).text
        stack.shard.delay_s = 0.05
        late = await http.post("/v1/completions", json=long)
    assert late.status_code == (200 if stream else 504)
    assert '"code":"deadline"' in late.text.replace(" ", "").lower()
