"""A crash anywhere in the gateway is counted as one, logged under the request's id, and told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from starlette.middleware.cors import CORSMiddleware
from structlog.testing import capture_logs

from gateway_stages import Stack, running_stack, until
from patience import PATIENCE_S
from plinth.gateway.core import GatewayCore
from plinth.gateway.generation.session import Session
from plinth.gateway.openai import routes as openai_routes
from plinth.gateway.openai import sse
from plinth.gateway.openai.rendering import ChatRenderer
from plinth.gateway.rest import error_handlers
from plinth.shared.errors import DataLoss
from plinth.v1 import generation_pb2 as pb
from plinth.v1 import generation_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY: dict[str, Any] = {
    "model": "chat",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 3,
}
CHAT = "/v1/chat/completions"
REQUEST_ID = "asked-as-this"
SECRET = "what only the log may say"


class Crash(Exception):
    """No error that anybody raises on purpose."""


def crash(*_: Any, **__: Any) -> Any:
    raise Crash(SECRET)


async def crash_later(*_: Any, **__: Any) -> Any:
    crash()


async def cancel(*_: Any, **__: Any) -> Any:
    raise asyncio.CancelledError


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path_factory.mktemp("crashes"), redis_server) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def http(gateway: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http(**{"x-request-id": REQUEST_ID}) as client:
        yield client


def counted(api: str, path: str) -> dict[str, float]:
    """Requests so far, by code."""
    found: dict[str, float] = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            labels = sample.labels
            if sample.name == "plinth_requests_total" and (labels["api"], labels["path"]) == (
                api,
                path,
            ):
                found[labels["code"]] = found.get(labels["code"], 0) + sample.value
    return found


def more(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {code: n - before.get(code, 0) for code, n in after.items() if n > before.get(code, 0)}


def errors(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["log_level"] == "error"]


WHOLE = {
    "in middleware": (CORSMiddleware, "__call__", crash_later),
    "in authentication": (openai_routes, "authenticate", crash_later),
    "in the handler": (GatewayCore, "_prepared", crash_later),
    "cancelled inside": (GatewayCore, "_prepared", cancel),
    "in rendering": (ChatRenderer, "whole", crash_later),
    "in closing": (Session, "_end", None),
}


@pytest.mark.parametrize("where", WHOLE)
async def test_before_the_head_a_crash_is_a_500(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, name, breaking = WHOLE[where]
    if breaking is None:  # it still closes, so that nothing is left of it
        real = Session._end

        async def breaking(session: Session) -> None:
            await real(session)
            crash()

    monkeypatch.setattr(owner, name, breaking)
    before = counted("rest", CHAT)
    with capture_logs() as logs:
        answer = await http.post(CHAT, json=BODY)
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == REQUEST_ID
    assert REQUEST_ID in answer.json()["error"]["message"]
    assert SECRET not in answer.text
    assert more(before, counted("rest", CHAT)) == {"500": 1}
    assert errors(logs)


async def test_a_crash_of_the_error_handler_itself_is_a_500(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = error_handlers.body_of
    calls = 0

    def first_crashes(error: BaseException) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return crash() if calls < 3 else real(error)

    monkeypatch.setattr(error_handlers, "body_of", first_crashes)
    before = counted("rest", CHAT)
    answer = await http.post(CHAT, json={**BODY, "model": "none"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == REQUEST_ID
    assert more(before, counted("rest", CHAT)) == {"500": 1}


async def break_off(*_: Any, **__: Any) -> Any:
    raise DataLoss("the weights are damaged")


STREAMED = {
    "rendering the opening": (ChatRenderer, "opening", crash, "STREAM_INTERNAL"),
    "rendering a choice": (ChatRenderer, "choice", crash_later, "STREAM_INTERNAL"),
    "a stage's own error": (ChatRenderer, "choice", break_off, "STREAM_DATA_LOSS"),
    "outside of the stream's own handling": (sse, "body_of", crash, "STREAM_INTERNAL"),
}


@pytest.mark.parametrize("where", STREAMED)
async def test_after_the_head_a_crash_has_a_code_of_its_own(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, name, breaking, code = STREAMED[where]
    monkeypatch.setattr(owner, name, breaking)
    if owner is sse:
        monkeypatch.setattr(ChatRenderer, "choice", crash_later)
    before = counted("rest", CHAT)
    text = ""
    with capture_logs() as logs:
        try:
            async with http.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
                assert answer.status_code == 200
                assert answer.headers["x-request-id"] == REQUEST_ID
                async for line in answer.aiter_lines():
                    text += line
        except httpx.RemoteProtocolError:
            assert owner is sse  # where no event could say so, the connection broke
    assert "[DONE]" not in text
    if owner is not sse:
        error = json.loads(text.rpartition("data: ")[2])["error"]
        assert code == "STREAM_DATA_LOSS" or REQUEST_ID in error["message"]
    assert SECRET not in text
    await until(lambda: more(before, counted("rest", CHAT)) == {code: 1})
    assert [entry for entry in logs if entry["log_level"] in ("error", "warning")]


async def test_a_hang_up_is_none(gateway: Stack, http: httpx.AsyncClient) -> None:
    gateway.shard.delay_s = 0.05
    before = counted("rest", CHAT)
    with capture_logs() as logs:
        try:
            async with http.stream(
                "POST", CHAT, json={**BODY, "stream": True, "max_tokens": 1000}
            ) as answer:
                await anext(answer.aiter_lines())
        finally:
            gateway.shard.delay_s = 0
        await until(lambda: more(before, counted("rest", CHAT)) != {})
    assert more(before, counted("rest", CHAT)) == {"499": 1}
    assert not errors(logs)


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/completions", "/v1/preferences/import", "/v1/preferences/judgements"]
)
@pytest.mark.parametrize("share", [0, 0.5, 1])
async def test_a_hang_up_in_the_body_is_none(gateway: Stack, path: str, share: float) -> None:
    """The whole of what was sent, or a part; never the body that was announced."""
    body = json.dumps(BODY).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n"
        f"content-length: {len(body) + 1}\r\n\r\n"
    )
    before = counted("rest", path)
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.gateway.port)
        writer.write(head.encode() + body[: int(share * len(body))])
        await writer.drain()
        writer.close()
        await until(lambda: more(before, counted("rest", path)) != {})
    # 503: without a coordinator, bodies for it are not read.
    assert set(more(before, counted("rest", path))) <= {"499", "503"}
    assert not errors(logs)


GRPC = {
    "in the handler": (GatewayCore, "_prepared", crash_later),
    "cancelled inside": (GatewayCore, "_prepared", cancel),
    "in the stream": (Session, "events", crash),
}


@pytest.mark.parametrize("where", GRPC)
async def test_grpc_counts_a_crash_as_internal(
    gateway: Stack, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, name, breaking = GRPC[where]
    monkeypatch.setattr(owner, name, breaking)
    before = counted("grpc", "StreamComplete")
    metadata = (("authorization", f"Bearer {gateway.key}"), ("x-request-id", REQUEST_ID))
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        call = generation_pb2_grpc.GenerationServiceStub(channel).StreamComplete(
            pb.StreamCompleteRequest(model="chat", prompt="hi"),
            metadata=metadata,
            timeout=PATIENCE_S,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert REQUEST_ID in (caught.value.details() or "")
    await until(lambda: more(before, counted("grpc", "StreamComplete")) == {"INTERNAL": 1})


async def test_request_ids_of_every_length_pass_both_apis(
    gateway: Stack, http: httpx.AsyncClient
) -> None:
    for length in (1, 96, 124, 125, 128):
        id_ = "i" * length
        answer = await http.post(CHAT, json=BODY, headers={"x-request-id": id_})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, id_), answer.text
        metadata = (("authorization", f"Bearer {gateway.key}"), ("x-request-id", id_))
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            call = generation_pb2_grpc.GenerationServiceStub(channel).StreamComplete(
                pb.StreamCompleteRequest(model="chat", prompt="hi"), metadata=metadata
            )
            async for _ in call:
                pass
            assert ("x-request-id", id_) in [tuple(p) for p in await call.trailing_metadata()]
