"""The engine's thread seen from asyncio: order, refusals, hanging up, standing still, dying."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import engines
from checkpoints import random_llama
from patience import PATIENCE_S
from plinth.engine.engine import Engine
from plinth.engine.request import Request, Sampling
from plinth.inference import outbox, step_times
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


async def test_a_reader_that_falls_behind_frees_its_blocks_and_can_have_the_rest(
    client: EngineClient, engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others go on meanwhile; the rest, asked for by position, is what the whole would be."""
    monkeypatch.setattr(outbox, "UNREAD_TOKENS", 40)
    asked = request("behind", 3, 4, 5, sampling=ENDLESS)
    stream = client.stream(asked)
    first = await anext(stream)
    other = await tokens(client, request("other", 8, 9, sampling=ENDLESS))
    assert len(other) == 200, "it was read"
    async with asyncio.timeout(PATIENCE_S):
        while engine.busy:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert engine.pool.live == 0
    client.check()
    events = [first, *[event async for event in stream]]
    assert isinstance(events[-1], outbox.ReaderBehind)
    got = [token.id for event in events for token in event.tokens]
    assert 40 < len(got) < 60
    rest = Sampling(temperature=0.0, max_tokens=200 - len(got), first_output_position=len(got))
    got += await tokens(client, request("rest", 3, 4, 5, *got, sampling=rest))
    alone, _ = engines.complete(engines.engine(folder), [(3, 4, 5)], ENDLESS)
    assert got == [token.id for token in alone[0]]


async def until_unhealthy(client: EngineClient) -> Unavailable:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                client.check()
            except Unavailable as error:
                return error
            await asyncio.sleep(0.01)


async def test_standing_still_with_work_is_unhealthy(
    client: EngineClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_times, "FIRST_S", 0.05)
    client.check()  # idle for ever is healthy
    go_on, step = threading.Event(), engine.step

    def stuck():
        go_on.wait(PATIENCE_S)
        return step()

    engine.step = stuck  # type: ignore[method-assign]
    answer = asyncio.create_task(tokens(client, request("slow", 3)))
    try:
        assert "no step" in (await until_unhealthy(client)).message
    finally:
        go_on.set()
    assert len(await answer) == 24
    client.check()


async def test_a_step_that_is_long_for_its_model_is_no_hang(
    client: EngineClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of 0.4 s each, where 0.05 s would be enough for a small model: they are no hang, and
    one that hangs is, also when whoever waited for it has gone."""
    monkeypatch.setattr(step_times, "FIRST_S", PATIENCE_S)
    monkeypatch.setattr(step_times, "AT_LEAST_S", 0.05)
    run, hang, go_on = engine.runner.run_rows, threading.Event(), threading.Event()

    def slow(rows):
        go_on.wait(PATIENCE_S if hang.is_set() else 0.4)
        return run(rows)

    engine.runner.run_rows = slow  # type: ignore[method-assign]
    short = Sampling(temperature=0.0, max_tokens=4)
    asking = asyncio.create_task(tokens(client, request("slow", 3, sampling=short)))
    looks = 0
    while not asking.done():
        client.check()
        looks += 1
        await asyncio.sleep(0.01)
    assert looks > 20
    hang.set()
    stuck = asyncio.create_task(tokens(client, request("stuck", 3, sampling=short)))
    while client._stepping is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    stuck.cancel()
    try:
        assert "no step" in (await until_unhealthy(client)).message
    finally:
        go_on.set()


async def test_a_failed_request_takes_no_other_with_it(
    client: EngineClient, engine: Engine, folder: Path
) -> None:
    """On the served engine and on a lent one: the model can't compute token 7."""
    lent = engines.engine(folder)
    for one in (engine, lent):
        _refuse_token(one, 7)
    await client.lend(lent)
    prompts = [(3, 4), (5, 7), (6, 8, 9)]
    truth, _ = engines.complete(engines.engine(folder), prompts, GREEDY)
    asked = [request(str(i), *prompt) for i, prompt in enumerate(prompts)]
    served = await asyncio.gather(*(tokens(client, one) for one in asked), return_exceptions=True)
    assert isinstance(served[1], Internal)
    assert served[1].reason == "ENGINE_STEP_FAILED"
    for i in (0, 2):
        assert served[i] == [token.id for token in truth[i]]
        assert [token.id for token in (await client.answers([asked[i]]))[0].tokens] == served[i]
    with pytest.raises(Internal, match="ZeroDivisionError"):
        await client.answers(asked)
    client.check()


def _refuse_token(engine: Engine, token: int) -> None:
    run = engine.runner.run_rows

    def fails(rows):
        if any(token in row.tokens for row in rows):
            raise ZeroDivisionError("the model can't")
        return run(rows)

    engine.runner.run_rows = fails  # type: ignore[method-assign]


async def test_a_broken_engine_fails_whoever_waits_and_its_health(
    client: EngineClient, engine: Engine, folder: Path
) -> None:
    lent, entered, go_on = engines.engine(folder), asyncio.Event(), threading.Event()
    await client.lend(lent)
    loop = asyncio.get_running_loop()

    def broken():
        loop.call_soon_threadsafe(entered.set)
        go_on.wait(PATIENCE_S)
        raise RuntimeError("out of memory")

    engine.step = broken  # type: ignore[method-assign]
    waiting = [asyncio.create_task(tokens(client, request("lost", 3)))]
    await asyncio.wait_for(entered.wait(), PATIENCE_S)
    waiting += [
        asyncio.create_task(client.answers([request("of the lent one", 3)])),
        asyncio.create_task(client.lend(None)),
    ]
    await asyncio.sleep(0)  # both have asked
    go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(one, Unavailable)
            assert one.reason == "ENGINE_FAILED"
    with pytest.raises(Unavailable, match="RuntimeError"):
        client.check()
    # And whoever comes later is told, not left to wait.
    async with asyncio.timeout(PATIENCE_S):
        for late in (
            tokens(client, request("late", 3)),
            client.answers([request("late", 3)]),
            client.lend(lent),
        ):
            with pytest.raises(Unavailable, match="not finished"):
                await late


@pytest.mark.parametrize("how", ["raises", "NaN", "shape"])
async def test_a_model_that_computes_nothing_any_more_ends_the_engine(
    client: EngineClient, engine: Engine, how: str
) -> None:
    """So that the shard is replaced, rather than refusing everything for ever in good health."""
    run = engine.runner.run_rows

    def broken(rows):
        if how == "raises":
            raise RuntimeError("the device is lost")
        good = run(rows)
        if how == "shape":
            return good[1:]
        return [replace(result, logits_mv=result.logits_mv * float("nan")) for result in good]

    engine.runner.run_rows = broken  # type: ignore[method-assign]
    with pytest.raises(Unavailable) as caught:
        await tokens(client, request("lost", 3))
    assert caught.value.reason == "ENGINE_FAILED"
    with pytest.raises(Unavailable):
        client.check()


async def test_an_id_that_is_in_use_is_refused_and_its_owner_is_answered(
    client: EngineClient,
) -> None:
    first = asyncio.create_task(tokens(client, request("twice", 3)))
    await asyncio.sleep(0)
    with pytest.raises(InvalidArgument, match="in use"):
        await tokens(client, request("twice", 4))
    assert len(await first) == 24


def test_limits_follow_what_was_measured() -> None:
    times = step_times.StepTimes()
    assert times.limit_s(512) == step_times.FIRST_S
    times.add(1, 1.2)  # a token of a model of 7 billion weights on two cores
    assert times.limit_s(1) == 60
    assert times.limit_s(512) == pytest.approx(8 * 1.2 * 512)
    times.add(512, 75.0)  # a minute and more is its work
    times.add(400, 50.0)
    assert times.limit_s(512) == 600
    assert times.limit_s(300) == 8 * 50.0
    assert times.limit_s(40) == 8 * 50.0, "as the next larger one"
    small = step_times.StepTimes()
    small.add(512, 10.0)
    assert small.limit_s(512) == 80
    small.add(512, 500.0)  # a stall that ended
    assert small.limit_s(512) == 80
    for _ in range(step_times.LAST):  # and what was slow once is forgotten
        small.add(512, 0.3)
    assert small.limit_s(512) == 60
