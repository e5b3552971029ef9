"""A crash anywhere on a call's way ends it with INTERNAL and its request id, and is counted so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from patience import PATIENCE_S
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc as rpc
from plinth.shared.rpc import authorization, validation
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import load_settings

NAME = "plinth.internal.v1.TokenizerService"
REQUEST_ID = "one-request"
SECRET = "what only the log may say"


class Crash(Exception):
    """No error that anybody raises on purpose."""


class Crashing(rpc.TokenizerServiceServicer):
    def __init__(self, how: str) -> None:
        self._how = how

    async def Encode(self, request: Any, context: Any) -> Any:
        if self._how == "handler":
            raise Crash(SECRET)
        if self._how == "cancelled inside":
            raise asyncio.CancelledError
        return "no message" if self._how == "serialising" else pb.EncodeResponse()

    async def Train(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if self._how == "cancelled inside":
            raise asyncio.CancelledError
        yield pb.TrainResponse(bytes_total=1)
        if self._how == "handler":
            raise Crash(SECRET)
        yield "no message" if self._how == "serialising" else pb.TrainResponse()


def crash(*_: Any) -> Any:
    raise Crash(SECRET)


async def admit(metadata: Any) -> Any:
    from plinth.shared.identity import Principal

    return Principal("acme", "k", frozenset({"admin"}))


async def crash_later(*_: Any) -> Any:
    crash()


def break_interceptor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(validation.ValidationInterceptor, "intercept_service", crash_later)


def break_authentication_layer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(authorization, "current_call", crash)


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "interceptor": break_interceptor,
    "authentication's layer": break_authentication_layer,
}


@pytest.mark.parametrize("method", ["Encode", "Train"])
@pytest.mark.parametrize(
    "how", ["handler", "cancelled inside", "serialising", "validator", *BREAKS]
)
async def test_a_crash_is_internal_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, method: str
) -> None:
    servicer = Crashing(how)
    server = GrpcServer(
        [
            GrpcService(
                NAME,
                lambda grpc_server: rpc.add_TokenizerServiceServicer_to_server(
                    servicer, grpc_server
                ),
                {"*": ""},
                validators={method: crash} if how == "validator" else {},
            )
        ],
        stage="tokenizer",
        settings=load_settings(data_dir=tmp_path),
        token="t" * 32,
        authenticator=admit,
    )
    port = await server.start()
    before = counted(method)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            if how in BREAKS:
                BREAKS[how](monkeypatch)
            call = ask(channel, method)
            with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call, PATIENCE_S)
    finally:
        await server.stop(0)
    error = caught.value
    assert error.code() is grpc.StatusCode.INTERNAL, error
    assert REQUEST_ID in (error.details() or "")
    assert ("x-request-id", REQUEST_ID) in [tuple(pair) for pair in error.trailing_metadata()]
    assert SECRET not in str(error)
    assert [entry for entry in logs if entry["log_level"] == "error"]
    wanted = before | {"INTERNAL": before.get("INTERNAL", 0) + 1}
    async with asyncio.timeout(
        PATIENCE_S
    ):  # counted when the call ends, which its client may see first
        while counted(method) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ask(channel: grpc.aio.Channel, method: str) -> None:
    """Reads the whole answer, as bytes."""
    metadata = (("x-request-id", REQUEST_ID),)
    path = f"/{NAME}/{method}"
    if method == "Encode":
        await channel.unary_unary(path)(b"", metadata=metadata)
        return
    async for _ in channel.unary_stream(path)(b"", metadata=metadata):
        pass


def counted(method: str) -> dict[str, float]:
    """Calls of `method` so far, by code."""
    return {
        sample.labels["code"]: sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "plinth_rpc_requests_total"
        and sample.labels["method"] == f"{NAME}/{method}"
    }
