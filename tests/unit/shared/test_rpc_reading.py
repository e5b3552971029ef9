"""Request messages are read behind auth and quotas, one where a method takes one, and counted where
strangers call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from patience import PATIENCE_S
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.internal.v1 import tokenizer_pb2_grpc as rpc
from plinth.shared.errors import ResourceExhausted
from plinth.shared.identity import Principal
from plinth.shared.rpc.server import GrpcServer, GrpcService
from plinth.shared.rpc.status import fail
from plinth.shared.rpc.validation import INLINE_BYTES
from plinth.shared.rpc.wire import Bounds
from plinth.shared.settings import load_settings

NAME = "plinth.internal.v1.TokenizerService"
UNARY, STREAM, BOTH = "Encode", "Train", "DecodeStream"


class Echo(rpc.TokenizerServiceServicer):
    async def Encode(self, request: Any, context: Any) -> Any:
        return pb.EncodeResponse(sequences=[pb.TokenIds(ids=[len(request.texts)])])

    async def Train(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield pb.TrainResponse(bytes_read=len(request.special_tokens))

    async def DecodeStream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield pb.DecodeStreamResponse(starts=[len(request.ids)])


async def admit(metadata: Any) -> Principal:
    return Principal("acme", "k", frozenset({"admin"}))


class Refusing(grpc.aio.ServerInterceptor):
    """Behind auth, as quotas are."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        from plinth.shared.rpc.handlers import wrap

        @asynccontextmanager
        async def layer(context: Any) -> AsyncIterator[None]:
            await fail(context, ResourceExhausted("nothing left"))
            yield

        return wrap(await continuation(details), layer)


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[grpc.aio.Channel]:
    service = GrpcService(
        NAME,
        lambda server: rpc.add_TokenizerServiceServicer_to_server(Echo(), server),
        {"*": ""},
    )
    server = GrpcServer(
        [service],
        stage="tokenizer",
        settings=load_settings(data_dir=folder),
        token="t" * 32,
        authenticator=admit,
        **options,
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def said(channel: grpc.aio.Channel, method: str, *messages: bytes) -> list[bytes]:
    """All that is answered to `messages`, which no library would send to a unary method."""
    call = channel.stream_stream(f"/{NAME}/{method}")(iter(messages))
    async with asyncio.timeout(PATIENCE_S):
        return [answer async for answer in call]


class Keeping(Echo):
    """Gives back what a record would keep of a request."""

    async def ApplyChatTemplates(self, request: Any, context: Any) -> Any:
        kept = pb.ApplyChatTemplatesRequest(conversations=request.conversations)
        return pb.ApplyChatTemplatesResponse(stop_token_ids=[len(kept.SerializeToString())])


async def test_what_this_version_does_not_know_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could check it, and parts of requests are stored as they came."""
    monkeypatch.setattr(f"{__name__}.Echo", Keeping)
    unknown = b"\xa2\x06\x80\x10" + b"x" * 2048  # field 100, of bytes
    inner = pb.Conversation(add_generation_prompt=True).SerializeToString()
    plain, more = (
        b"\x12" + bytes([len(one) & 0x7F | 0x80, len(one) >> 7]) + one
        for one in (inner, inner + unknown)
    )
    async with serving(tmp_path) as channel:
        (known,) = await said(channel, "ApplyChatTemplates", plain)
        (kept,) = await said(channel, "ApplyChatTemplates", more)
    assert kept == known
    assert pb.ApplyChatTemplatesResponse.FromString(kept).stop_token_ids == [len(inner) + 2]


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_a_call_without_its_message_is_answered(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await said(channel, method)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "the call has no message"
        assert len(await said(channel, method, b"")) == 1  # an empty message is one


async def test_a_stream_without_messages_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as channel:
        assert await said(channel, BOTH) == []
        assert len(await said(channel, BOTH, b"", b"", b"")) == 3


@pytest.mark.parametrize("method", [UNARY, STREAM, BOTH])
async def test_who_is_refused_is_not_read(tmp_path: Path, method: str) -> None:
    """The refusal comes though the message never does."""
    never = asyncio.Event()

    async def messages() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    async with serving(tmp_path, admitted=[Refusing()]) as channel:
        call = channel.stream_stream(f"/{NAME}/{method}")(messages())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), PATIENCE_S)
        assert caught.value.details() == "nothing left"
        call.cancel()


@pytest.mark.parametrize("size", [1, INLINE_BYTES])
async def test_each_message_is_counted(tmp_path: Path, size: int) -> None:
    """Inline or in a thread; of a stream the second too."""
    padding = b"a" * size
    fits = pb.EncodeRequest(model=padding.decode(), texts=[""] * 9)
    more = pb.EncodeRequest(model=padding.decode(), texts=[""] * 10)
    async with serving(tmp_path, bounds=Bounds(fields=10, packed=10)) as channel:
        (answer,) = await said(channel, UNARY, fits.SerializeToString())
        assert pb.EncodeResponse.FromString(answer).sequences[0].ids == [9]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await said(channel, UNARY, more.SerializeToString())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "texts: the message has more than 10 fields" in (caught.value.details() or "")
        ids = pb.DecodeStreamRequest(model=padding.decode(), ids=range(10)).SerializeToString()
        too_many = pb.DecodeStreamRequest(ids=range(11)).SerializeToString()
        assert len(await said(channel, BOTH, ids, ids)) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await said(channel, BOTH, ids, too_many)
        assert "ids: the message has more than 10 numbers" in (caught.value.details() or "")
