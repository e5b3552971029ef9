"""What the gateway's public gRPC port lets clients have: connections, time to begin, size."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
import pytest_asyncio

from gateway_stages import Stack, running_stack
from patience import PATIENCE_S
from plinth.gateway.grpc_api import BESIDE_BYTES
from plinth.v1 import (
    chat_pb2,
    generation_pb2,
    generation_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    sampling_pb2,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONNECTIONS = 16
HANDSHAKE_S = 1.0
BODY_BYTES = 100_000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING = 4, 6
ACK = 1
GRPC_PING_S = 60.0  # how long gRPC itself waits for an answer to a ping


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    async with running_stack(
        tmp_path_factory.mktemp("limits"),
        redis_server,
        max_connections=CONNECTIONS,
        head_timeout_s=HANDSHAKE_S,
        max_body_bytes=BODY_BYTES,
    ) as stack:
        yield stack


def own_connection(stack: Stack) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    return grpc.aio.insecure_channel(stack.grpc_address, options=options)


async def models(stack: Stack, channel: grpc.aio.Channel, *, wait: bool = False) -> list[str]:
    answer = await models_pb2_grpc.ModelServiceStub(channel).ListModels(
        models_pb2.ListModelsRequest(),
        metadata=(("authorization", f"Bearer {stack.key}"),),
        timeout=PATIENCE_S,
        wait_for_ready=wait,
    )
    return [model.name.removeprefix("models/") for model in answer.models]


async def ask(stack: Stack, request: generation_pb2.StreamChatRequest, **channel: Any) -> str:
    """The whole answer's text."""
    async with grpc.aio.insecure_channel(stack.grpc_address, **channel) as opened:
        call = generation_pb2_grpc.GenerationServiceStub(opened).StreamChat(
            request, metadata=(("authorization", f"Bearer {stack.key}"),), timeout=PATIENCE_S
        )
        return "".join([answer.text async for answer in call])


def chat(content: str) -> generation_pb2.StreamChatRequest:
    return generation_pb2.StreamChatRequest(
        model="chat",
        messages=[chat_pb2.ChatMessage(role="user", content=content)],
        options=generation_pb2.GenerationOptions(
            sampling=sampling_pb2.SamplingParams(max_tokens=1, seed=1)
        ),
    )


async def test_one_connection_too_many_is_refused_and_harms_none(stack: Stack) -> None:
    async with AsyncExitStack() as held:
        channels = []
        for _ in range(CONNECTIONS):
            channels.append(await held.enter_async_context(own_connection(stack)))
            assert await models(stack, channels[-1]) == ["chat"]
        async with own_connection(stack) as one_more:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await models(stack, one_more)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            for channel in channels:
                assert channel.get_state() is grpc.ChannelConnectivity.READY
                assert await models(stack, channel) == ["chat"]
            await channels[0].close()
            assert await models(stack, one_more, wait=True) == ["chat"]


@pytest.mark.parametrize("said", [b"", PREFACE[:9], PREFACE])
async def test_who_does_not_come_to_speak_http_2_is_sent_away(stack: Stack, said: bytes) -> None:
    """A preface without the settings behind it is no handshake yet. Whoever made it may be quiet
    for longer."""
    async with own_connection(stack) as quiet:
        assert await models(stack, quiet) == ["chat"]
        parts = urlsplit(f"//{stack.grpc_address}")
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(said)
            # Up to the end, and not after the two minutes that gRPC gives by itself.
            await asyncio.wait_for(reader.read(), PATIENCE_S / 2)
        finally:
            writer.close()
        assert quiet.get_state() is grpc.ChannelConnectivity.READY


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_that_is_too_large_is_refused_by_its_limit(
    stack: Stack, compression: grpc.Compression
) -> None:
    """Also one that is small until it is unpacked."""
    limit = BODY_BYTES + BESIDE_BYTES
    beside = len(chat("a" * limit).SerializeToString()) - limit
    fits = chat("a" * (limit - beside))
    assert len(fits.SerializeToString()) == limit
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(stack, fits, compression=compression)
    assert "maximum context length" in (caught.value.details() or "")  # it was read
    fits.messages[0].content += "a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(stack, fits, compression=compression)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (caught.value.details() or "")
    if compression is grpc.Compression.NoCompression:
        assert f"({limit + 1} vs. {limit})" in (caught.value.details() or "")


async def test_a_compressed_message_is_taken(stack: Stack) -> None:
    assert await ask(stack, chat("hello"), compression=grpc.Compression.Gzip) == await ask(
        stack, chat("hello")
    )


class Http2:
    """A client that answers pings only where it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, address: str) -> Http2:
        host, port = address.rsplit(":", 1)
        opened = cls(*await asyncio.open_connection(host, int(port)))
        opened._writer.write(PREFACE)
        opened._send(SETTINGS, 0)
        return opened

    def _send(self, kind: int, flags: int, payload: bytes = b"") -> None:
        length = struct.pack(">I", len(payload))[1:]
        self._writer.write(length + bytes([kind, flags]) + bytes(4) + payload)

    async def ping(self, patience_s: float = PATIENCE_S) -> bytes | None:
        """The next ping; None when the other side has closed instead."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    head = await self._reader.readexactly(9)
                    payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                    if head[3] == SETTINGS and not head[4] & ACK:
                        self._send(SETTINGS, ACK)
                    if head[3] == PING and not head[4] & ACK:
                        return payload
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def ping_often(self) -> None:
        for _ in range(10):
            self._send(PING, 0, bytes(8))

    def pong(self, payload: bytes) -> None:
        self._send(PING, ACK, payload)

    def close(self) -> None:
        self._writer.close()


async def test_a_client_that_pings_all_the_time_is_sent_away(stack: Stack) -> None:
    client = await Http2.open(stack.grpc_address)
    try:
        client.ping_often()
        assert await client.ping() is None
    finally:
        client.close()


async def test_a_quiet_connection_is_pinged_and_closed_when_nobody_answers(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `rpc.keepalive_s`, for longer than gRPC does by itself; and not after its own minute."""
    monkeypatch.setenv("PLINTH_RPC__KEEPALIVE_S", "1")
    monkeypatch.setenv("PLINTH_RPC__KEEPALIVE_TIMEOUT_S", "0.5")
    async with running_stack(tmp_path_factory.mktemp("keepalive"), redis_server) as stack:
        client = await Http2.open(stack.grpc_address)
        try:
            for _ in range(4):  # gRPC's own limit without data is two
                ping = await client.ping()
                assert ping is not None, "it closed on a client that answers"
                client.pong(ping)
            while await client.ping(GRPC_PING_S / 2) is not None:
                pass  # unanswered
        finally:
            client.close()
