"""Clients that don't read their answers, or hardly: what they cost, and how they are cut off."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import REGISTRY

from gateway_stages import Shard, Stack, running_stack, script_text, until
from hostile import WatchedGateway, watched_gateway
from patience import PATIENCE_S
from plinth.gateway.generation.generator import INBOX_MESSAGES
from plinth.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2

TOKENS = 4000
STREAMS = 8
# What the kernel, HTTP/2's window, the gateway's inboxes and its one connection hold of a stream,
# in tokens with 20 alternatives: a shard that has made as many waits.
HELD_TOKENS = 3000
RECEIVED = 32 << 10  # bytes that a client's kernel takes


class CountingShard(Shard):
    """Knows how many tokens it has passed on."""

    made = 0

    async def _generate(self, request: object) -> AsyncIterator[object]:
        async for message in super()._generate(request):
            yield message
            self.made += len(message.tokens)


def body(**more: object) -> dict[str, object]:
    ask = {"model": "chat", "prompt": "x", "max_tokens": TOKENS, "seed": 0, "stream": True}
    return {**ask, "logprobs": 20, **more}


async def silent(stack: Stack, ask: dict[str, object]) -> socket.socket:
    """Asks, and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", stack.settings.gateway.port))
    data = json.dumps(ask).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {stack.key}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    await loop.sock_sendall(sock, head.encode() + data)
    return sock


async def received(sock: socket.socket) -> bytes:
    """All that still comes, until the connection ends in whatever way."""
    loop, data = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(PATIENCE_S):
        try:
            while part := await loop.sock_recv(sock, 1 << 20):
                data += part
        except ConnectionResetError:
            pass
    return bytes(data)


async def standing_still(shard: CountingShard) -> int:
    """Tokens made, once there are some and no more come."""
    async with asyncio.timeout(PATIENCE_S):
        last = -1
        while shard.made != last or not last:
            last = shard.made
            await asyncio.sleep(0.5)
    return last


@pytest.fixture
async def watched(
    tmp_path: Path, redis_server: str, redis_client: object
) -> AsyncIterator[WatchedGateway]:
    async with watched_gateway(tmp_path, redis_server, slow_client_s=1) as gateway:
        yield gateway


async def test_a_client_that_does_not_read_costs_little_and_is_cut_off(
    watched: WatchedGateway,
) -> None:
    async def attack() -> None:
        sock = await silent(watched.stack, body(n=STREAMS))
        await received_late(sock)

    async def received_late(sock: socket.socket) -> None:
        shard = watched.stack.shard
        await until(lambda: shard.running > STREAMS)
        await until(lambda: shard.running == 1)  # the neighbour's
        sock.close()

    watched.stack.shard.delay_s = 0.0005
    await watched.survives(attack)


async def test_a_client_that_reads_a_byte_at_a_time_is_cut_off_too(watched: WatchedGateway) -> None:
    async def attack() -> None:
        shard = watched.stack.shard
        sock = await silent(watched.stack, body(n=2))
        await until(lambda: shard.running > 2)
        while shard.running > 1:
            await asyncio.get_running_loop().sock_recv(sock, 1)
            await asyncio.sleep(0.05)
        sock.close()

    watched.stack.shard.delay_s = 0.0005
    await watched.survives(attack)


async def test_a_grpc_client_that_does_not_read_costs_little_and_is_cut_off(
    watched: WatchedGateway,
) -> None:
    sampling = sampling_pb2.SamplingParams(max_tokens=TOKENS, top_logprobs=20, seed=0)
    request = generation_pb2.StreamCompleteRequest(
        model="chat", prompt="x", options=generation_pb2.GenerationOptions(sampling=sampling)
    )
    metadata = (("authorization", f"Bearer {watched.stack.key}"),)
    options = [("grpc.http2.bdp_probe", 0)]  # or the client's own memory takes it all

    async def attack() -> None:
        async with grpc.aio.insecure_channel(watched.stack.grpc_address, options=options) as to:
            stub = generation_pb2_grpc.GenerationServiceStub(to)
            calls = [stub.StreamComplete(request, metadata=metadata) for _ in range(STREAMS)]
            for call in calls:
                await call.read()
            await until(lambda: watched.stack.shard.running == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await calls[0].read() is not grpc.aio.EOF:
                    pass
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "read nothing" in (caught.value.details() or "")

    watched.stack.shard.delay_s = 0.0005
    await watched.survives(attack)


async def test_a_shard_waits_for_a_client_that_does_not_read_and_goes_on_when_it_does(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    shard = CountingShard()
    async with running_stack(tmp_path, redis_server, first=shard) as stack:
        sock = await silent(stack, body())
        made = await standing_still(shard)
        assert INBOX_MESSAGES < made < HELD_TOKENS
        data = bytearray()
        async with asyncio.timeout(PATIENCE_S):
            while b"[DONE]" not in data[-100:]:
                data += await asyncio.get_running_loop().sock_recv(sock, 1 << 20)
        sock.close()
        events = re.findall(rb"^data: (\{.*\})\r?$", data, re.MULTILINE)
        text = "".join(json.loads(e)["choices"][0]["text"] for e in events if e.endswith(b"}"))
        assert text == script_text(0, 0, TOKENS)


async def test_a_stream_that_is_cut_off_says_why_to_a_client_that_reads_again(
    tmp_path: Path, redis_server: str, redis_client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plinth.gateway.rest.slow_clients.FAREWELL_S", PATIENCE_S)
    async with running_stack(tmp_path, redis_server, slow_client_s=0.5) as stack:
        before = cut_off()
        sock = await silent(stack, body(n=2))
        await until(lambda: cut_off() == before + 1)
        data = await received(sock)
        assert b'"code":"slow_client"' in data
        assert b"[DONE]" not in data
        await until(lambda: stack.shard.running == 0)
        sock.close()


async def test_an_answer_sent_whole_is_cut_off_too(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    async with running_stack(tmp_path, redis_server, slow_client_s=0.5) as stack:
        before = cut_off()
        sock = await silent(stack, body(stream=False, n=2))
        await until(lambda: cut_off() == before + 1)
        whole = await received(sock)
        assert b"200 OK" in whole
        length = re.search(rb"content-length: (\d+)", whole)
        assert length is not None
        assert len(whole) < int(length[1])
        sock.close()


def cut_off() -> float:
    return REGISTRY.get_sample_value("plinth_slow_clients_total") or 0.0
