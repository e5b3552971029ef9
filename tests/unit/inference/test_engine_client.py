"""The engine's thread seen from asyncio: order, refusals, hanging up, standing still, dying."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import engines
from checkpoints import random_llama
from patience import PATIENCE_S
from plinth.engine.engine import Engine
from plinth.engine.request import Request, Sampling
from plinth.inference import client as module
from plinth.inference.client import EngineClient
from plinth.shared.errors import Internal, InvalidArgument, Unavailable

GREEDY = Sampling(temperature=0.0, max_tokens=24)
ENDLESS = Sampling(temperature=0.0, max_tokens=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("m") / "llama")


@pytest.fixture
def engine(folder: Path) -> Engine:
    return engines.engine(folder)


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[EngineClient]:
    made = EngineClient(engine)
    made.start()
    yield made
    await made.stop()


def request(name: str, *ids: int, sampling: Sampling = GREEDY) -> Request:
    return Request(name, ids, engines.BINDING, sampling)


async def tokens(client: EngineClient, asked: Request) -> list[int]:
    return [token.id async for event in client.stream(asked) for token in event.tokens]


async def test_many_streams_get_what_the_engine_alone_gives(
    client: EngineClient, folder: Path
) -> None:
    prompts = [tuple(range(3, 5 + i)) for i in range(12)]
    asked = [request(str(i), *prompt) for i, prompt in enumerate(prompts)]
    served = await asyncio.gather(*(tokens(client, one) for one in asked))
    alone, _ = engines.complete(engines.engine(folder), prompts, GREEDY)
    assert served == [[token.id for token in answer] for answer in alone]


async def test_a_refusal_reaches_its_own_stream_only(client: EngineClient) -> None:
    good, bad = await asyncio.gather(
        tokens(client, request("good", 5, 6)),
        tokens(client, request("bad", 10**6)),
        return_exceptions=True,
    )
    assert isinstance(good, list)
    assert len(good) == 24
    assert isinstance(bad, InvalidArgument)


async def test_whoever_hangs_up_frees_blocks_within_one_step(
    client: EngineClient, engine: Engine
) -> None:
    """Steps are counted on the engine's thread, where both abort and step happen."""
    left_at, freed_at = None, None
    abort, freed = engine.abort, asyncio.Event()
    loop = asyncio.get_running_loop()

    def watched_abort(*arguments):
        nonlocal freed_at
        event = abort(*arguments)
        if event is not None:
            freed_at = engine.steps
            assert engine.pool.live == 0
            loop.call_soon_threadsafe(freed.set)
        return event

    engine.abort = watched_abort  # type: ignore[method-assign]
    stream = client.stream(request("gone", 3, 4, 5, sampling=ENDLESS))
    async for _ in stream:
        left_at = engine.steps
        break
    await stream.aclose()
    await asyncio.wait_for(freed.wait(), PATIENCE_S)
    assert left_at is not None
    assert freed_at is not None
    # One step may be under way when the client leaves; the loop's hop can cost one more.
    assert freed_at - left_at <= 2


async def test_standing_still_with_work_is_unhealthy(
    client: EngineClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.05)
    client.check()  # idle for ever is healthy
    go_on, step = threading.Event(), engine.step

    def stuck():
        go_on.wait(30)
        return step()

    engine.step = stuck  # type: ignore[method-assign]
    answer = asyncio.create_task(tokens(client, request("slow", 3)))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    client.check()
                except Unavailable as error:
                    assert "no step" in error.message
                    break
                await asyncio.sleep(0.01)
    finally:
        go_on.set()
    monkeypatch.setattr(module, "STALL_S", 60.0)
    assert len(await answer) == 24
    client.check()


async def test_a_broken_engine_fails_its_streams_and_its_health(
    client: EngineClient, engine: Engine
) -> None:
    def broken():
        raise RuntimeError("out of memory")

    engine.step = broken  # type: ignore[method-assign]
    with pytest.raises(Internal, match="not finished"):
        await tokens(client, request("lost", 3))
    with pytest.raises(Internal, match="RuntimeError"):
        client.check()
    # And whoever comes later is told, not left to wait.
    with pytest.raises(Internal, match="stopped"):
        async with asyncio.timeout(PATIENCE_S):
            await tokens(client, request("late", 3))
