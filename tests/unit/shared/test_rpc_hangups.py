"""A caller that hangs up is no crash, whatever its call is at: it counts as CANCELLED, and nothing
is logged as an error. A crash is one, also of a call whose caller is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from patience import PATIENCE_S
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc as rpc
from plinth.shared.errors import NotFound
from plinth.shared.identity import Principal
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.settings import load_settings

NAME = "plinth.internal.v1.TokenizerService"
UNARY, STREAM, BOTH = "Encode", "Train", "DecodeStream"


class Busy(rpc.TokenizerServiceServicer):
    """Does something to its call once its caller is gone: `what`. Real handlers do when the hang-up
    comes in the same moment."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.begun = asyncio.Event()

    async def _gone(self, context: Any) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self._what == "fails":
                raise NotFound("it is gone") from None
            if self._what == "tells that it began":
                await context.send_initial_metadata(())
            if self._what == "crashes":
                raise KeyError("of a handler, on its way out") from None

    async def Encode(self, request: Any, context: Any) -> Any:
        await self._gone(context)
        return pb.EncodeResponse()

    async def Train(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._gone(context)
        yield pb.TrainResponse()

    async def DecodeStream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            await self._gone(context)
            yield pb.DecodeStreamResponse()


class Echo(rpc.TokenizerServiceServicer):
    async def DecodeStream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in requests:
            yield pb.DecodeStreamResponse()


async def admit(metadata: Any) -> Principal:
    return Principal("acme", "k", frozenset({"admin"}))


def counted() -> dict[str, float]:
    """Calls so far, by code."""
    found: dict[str, float] = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            name = sample.labels.get("method", "")
            if sample.name == "plinth_rpc_requests_total" and name.startswith(NAME):
                code = sample.labels["code"]
                found[code] = found.get(code, 0) + sample.value
    return found


@contextmanager
def errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """By us and by gRPC, once it is left."""
    found: list[str] = []
    with capture_logs() as logs, caplog.at_level(logging.ERROR):
        yield found
    found += [entry["event"] for entry in logs if entry["log_level"] == "error"]
    found += [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def serve(folder: Path, servicer: Any) -> tuple[GrpcServer, str]:
    service = GrpcService(
        NAME,
        lambda server: rpc.add_TokenizerServiceServicer_to_server(servicer, server),
        {"*": ""},
    )
    server = GrpcServer(
        [service],
        stage="tokenizer",
        settings=load_settings(data_dir=folder),
        token="t" * 32,
        authenticator=admit,
    )
    return server, f"127.0.0.1:{await server.start()}"


def opened(channel: grpc.aio.Channel, method: str) -> Any:
    path = f"/{NAME}/{method}"
    if method == UNARY:
        return channel.unary_unary(path)(b"")
    if method == STREAM:
        return channel.unary_stream(path)(b"")
    return channel.stream_stream(path)(iter([b""]))


@pytest.mark.parametrize("method", [UNARY, STREAM, BOTH])
@pytest.mark.parametrize("what", ["answers", "fails", "crashes", "tells that it began"])
async def test_what_a_handler_does_to_a_caller_that_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, what: str
) -> None:
    servicer = Busy(what)
    server, address = await serve(tmp_path, servicer)
    before = counted()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            with errors_logged(caplog) as errors:
                call = opened(channel, method)
                await asyncio.wait_for(servicer.begun.wait(), PATIENCE_S)
                call.cancel()
                async with asyncio.timeout(PATIENCE_S):
                    while counted() == before:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
    finally:
        await server.stop(0)
    code = "INTERNAL" if what == "crashes" else "CANCELLED"
    if (method, what) == (UNARY, "answers"):
        code = "OK"  # its caller could have had the answer
    assert counted() == before | {code: before.get(code, 0) + 1}
    assert errors == (["unexpected error"] if what == "crashes" else [])


@pytest.mark.parametrize("closes", [False, True])
async def test_who_hangs_up_between_two_messages_has_not_said_all(
    tmp_path: Path, closes: bool
) -> None:
    """gRPC reads the same of both, and of a hang-up says so a moment later; on a busy machine too
    late for one or the other."""
    server, address = await serve(tmp_path, Echo())
    before = counted()
    calls = 20
    try:
        for _ in range(calls):
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.stream_stream(f"/{NAME}/{BOTH}")()
                await call.write(b"")
                await call.read()
                if closes:
                    await call.done_writing()
                    assert await call.read() is grpc.aio.EOF
                else:
                    call.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while sum(counted().values()) - sum(before.values()) < calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        await server.stop(0)
    code = "OK" if closes else "CANCELLED"
    assert counted()[code] - before.get(code, 0) >= (calls if closes else 0.8 * calls)
