"""With auth off, what a page in a browser can send is told from what a program sends."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from plinth.gateway.core import GatewayCore
from plinth.gateway.rest.app import build_app
from plinth.gateway.rest.cross_site import CrossSiteProtection
from plinth.shared.settings import load_settings
from plinth.shared.settings_sections import GatewaySettings

URL = "http://127.0.0.1:8080/v1/chat/completions"
EVIL = "http://evil.example"


async def status(headers: dict[str, str], method: str = "POST", **settings: Any) -> int:
    gateway = GatewaySettings(auth="off", **settings)
    app = CrossSiteProtection(PlainTextResponse("in"), gateway)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport) as client:
        answer = await client.request(method, URL, headers=headers)
    if answer.status_code == 403:
        assert answer.json()["error"]["message"]
    return answer.status_code


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a program
        {"host": "localhost"},
        {"host": "LocalHost:8080"},
        {"host": "[::1]:8080"},
        {"host": "127.0.0.2"},
        {"host": "192.168.0.5:8080"},  # an address, which no page can make its own
        {"host": "chat.localhost:8080"},
        {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8080"},
        {"sec-fetch-site": "none"},  # typed into the address bar
        {"origin": "http://127.0.0.1:8080"},
    ],
    ids=str,
)
async def test_programs_and_own_pages_get_in(headers: dict[str, str]) -> None:
    assert await status(headers) == 200


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1@evil.example",
        "[::1",
        "",
    ],
)
async def test_a_name_that_points_here_is_refused(host: str, method: str) -> None:
    assert await status({"host": host}, method) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": EVIL},
        {"origin": "null"},  # a sandboxed frame, or a file
        {"origin": "http://127.0.0.1:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8080"},
    ],
    ids=str,
)
async def test_a_page_of_another_origin_changes_nothing(headers: dict[str, str]) -> None:
    assert await status(headers) == 403
    assert await status(headers, "GET") == 200  # whose answer it may not read


async def test_what_an_operator_allows() -> None:
    host = {"host": "Plinth.example"}
    assert await status(host, allowed_hosts=("plinth.example",)) == 200
    assert await status(host, allowed_hosts=("other.example",)) == 403
    page = {"origin": EVIL, "sec-fetch-site": "cross-site"}
    assert await status(page, cors_origins=(EVIL,)) == 200
    assert await status(page, cors_origins=("*",)) == 200
    assert await status(page, cors_origins=("http://other.example",)) == 403


@pytest.mark.parametrize(("auth", "expected"), [("off", 403), ("keys", 401)])
async def test_it_stands_where_no_key_is_asked_for(auth: str, expected: int, tmp_path: Any) -> None:
    """A browser never sends a key by itself, so with keys it's the key that decides."""
    settings = load_settings(
        data_dir=tmp_path,
        cluster_token="t" * 32,
        redis_url="redis://127.0.0.1:1/0",  # which nobody asks
        gateway={"auth": auth},
    )
    core = GatewayCore(settings)
    try:
        transport = httpx.ASGITransport(build_app(core))
        async with httpx.AsyncClient(transport=transport) as client:
            sent = {"content-type": "text/plain", "origin": EVIL, "sec-fetch-site": "cross-site"}
            answer = await client.post(URL, content='{"model": "chat"}', headers=sent)
        assert answer.status_code == expected, answer.text
        assert answer.headers["x-request-id"]
    finally:
        await core.close()
