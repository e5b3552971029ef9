"""plinth.client over a gateway that is killed with -9 and started again: streams of text and calls
go on, and their caller sees nothing of it. A watch's survival is in test_watch_survives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway_process import GatewayProcess
from gateway_stages import Shard, Stack, gateway_settings, script_ids, script_text
from patience import PATIENCE_S
from plinth.client import AsyncClient, Client, Policy
from plinth.v1.chat_pb2 import ChatMessage
from plinth.v1.generation_pb2 import GenerationOptions, StreamChatResponse
from plinth.v1.sampling_pb2 import FINISH_REASON_LENGTH, SamplingParams

TOKENS, SEED = 60, 5
CHAT: dict[str, Any] = {
    "messages": [ChatMessage(role="user", content="Say it")],
    "options": GenerationOptions(n=2, sampling=SamplingParams(max_tokens=TOKENS, seed=SEED)),
}
POLICY = Policy(patience_s=PATIENCE_S, stream_patience_s=PATIENCE_S)


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    """A tokenizer and a shard that takes its time; the gateway is the test's own."""
    stack = Stack(gateway_settings(tmp_path, redis_server), redis_server)
    try:
        await stack.add_tokenizer("tokenizer-0")
        await stack.add_shard("shard-0", Shard(delay_s=0.02))
        yield stack
    finally:
        await stack.stop_replicas()


@pytest.fixture
async def gateway(stack: Stack) -> AsyncIterator[GatewayProcess]:
    process = GatewayProcess(stack.settings)
    try:
        await process.start()
        yield process
    finally:
        await process.kill()


def check(pieces: list[StreamChatResponse]) -> None:
    for index in (0, 1):
        own = [piece for piece in pieces if piece.index == index]
        ids = [token.id for piece in own for token in piece.tokens]
        assert ids == script_ids(SEED, index, TOKENS)
        assert "".join(piece.text for piece in own) == script_text(SEED, index, TOKENS)
        assert [piece.finish_reason for piece in own if piece.finish_reason] == [
            FINISH_REASON_LENGTH
        ]
    assert [bool(piece.id) for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert pieces[-1].usage.completion_tokens == 2 * TOKENS


async def test_a_stream_goes_on(stack: Stack, gateway: GatewayProcess) -> None:
    pieces = []
    async with AsyncClient(gateway.address, "", policy=POLICY) as client:
        async for piece in client.generation.stream_chat("chat", **CHAT):
            pieces.append(piece)
            if len(pieces) == 20:
                await gateway.kill()
                await gateway.start()
    check(pieces)
    assert len(stack.shard.requests) > 2  # both answers were made again


async def test_a_blocking_stream_goes_on(gateway: GatewayProcess) -> None:
    loop = asyncio.get_running_loop()

    async def killed() -> None:
        await gateway.kill()
        await gateway.start()

    def read() -> list[StreamChatResponse]:
        pieces = []
        with Client(gateway.address, "", policy=POLICY) as client:
            for piece in client.generation.stream_chat("chat", **CHAT):
                pieces.append(piece)
                if len(pieces) == 20:
                    asyncio.run_coroutine_threadsafe(killed(), loop).result()
        return pieces

    check(await asyncio.to_thread(read))


async def test_a_call_waits_for_the_gateway(gateway: GatewayProcess) -> None:
    async with AsyncClient(gateway.address, "", policy=POLICY) as client:
        models = [model async for model in client.models.list_models()]
        await gateway.kill()
        again = asyncio.create_task(_listed(client))
        await gateway.start()
        assert await again == models


async def _listed(client: AsyncClient) -> list[Any]:
    return [model async for model in client.models.list_models()]
