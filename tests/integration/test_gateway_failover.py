"""Streams outlive the shards that make them: no gap, no repeat, whatever dies when."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest

from gateway_stages import Shard, Stack, running_stack, script_text, until
from patience import PATIENCE_S
from plinth.shared.errors import Unavailable

ASK = [{"role": "user", "content": "Say it"}]
TOKENS = 200
SLOW_S = 0.1  # a token: an answer lasts 20 s, unless it is let go on


@asynccontextmanager
async def opened(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=stack.key, base_url=f"{stack.url}/v1", max_retries=0
    ) as client:
        yield client


async def streamed(
    client: openai.AsyncOpenAI, seed: int, tokens: int = TOKENS, begun: set[int] | None = None
) -> str:
    """begun: gets the seed once there is text."""
    stream = await client.chat.completions.create(
        model="chat", messages=ASK, max_tokens=tokens, seed=seed, stream=True
    )
    texts = []
    async for chunk in stream:
        texts.append(chunk.choices[0].delta.content or "")
        if texts[-1] and begun is not None:
            begun.add(seed)
    return "".join(texts)


async def in_the_middle(client: openai.AsyncOpenAI, count: int) -> list[asyncio.Task[str]]:
    """So many streams with the seeds from 0 on, each of which has text and is far from its end."""
    begun: set[int] = set()
    tasks = [asyncio.create_task(streamed(client, seed, begun=begun)) for seed in range(count)]
    await until(lambda: len(begun) == count)
    return tasks


async def shard_process(stack: Stack, id: str, delay_s: float) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parents[1] / "gateway_stages.py"),
        stack.redis_url,
        id,
        str(delay_s),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def test_twenty_streams_outlive_a_killed_shard(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    """One of two shards, each a process, is killed with -9 in mid-stream."""
    async with running_stack(tmp_path, redis_server, shards=1) as stack, opened(stack) as client:
        stack.shard.delay_s = SLOW_S
        process = await shard_process(stack, "doomed", SLOW_S)
        try:
            streams = await in_the_middle(client, 20)
            assert 5 <= stack.shard.running <= 15  # the rest is at the other one
            process.kill()
            stack.shard.delay_s = 0
            texts = await asyncio.gather(*streams)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        assert texts == [script_text(seed, 0, TOKENS) for seed in range(20)]
        resumed = [r for r in stack.shard.requests if r.first_output_position]
        assert len(resumed) >= 5
        assert all(r.sampling.max_tokens + r.first_output_position == TOKENS for r in resumed)


async def test_a_drained_shard_hands_its_streams_on(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    async with running_stack(tmp_path, redis_server, shards=2) as stack, opened(stack) as client:
        for shard in stack.shards.values():
            shard.delay_s = SLOW_S
        streams = await in_the_middle(client, 6)
        assert stack.shards["shard-0"].running >= 2
        await stack.replicas["shard-0"].stop()
        stack.shards["shard-1"].delay_s = 0
        assert await asyncio.gather(*streams) == [script_text(seed, 0, TOKENS) for seed in range(6)]


async def test_the_only_shard_comes_back(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, opened(stack) as client:
        stack.shard.delay_s = 0.01
        stream = asyncio.create_task(streamed(client, 4))
        await until(lambda: stack.shard.running == 1)
        await stack.replicas["shard-0"].stop()
        fresh = Shard()
        late = asyncio.create_task(streamed(client, 5))  # asks while nobody is there
        await asyncio.sleep(0.5)
        await stack.add_shard("shard-again", fresh)
        assert await stream == script_text(4, 0, TOKENS)
        assert await late == script_text(5, 0, TOKENS)
        assert any(r.first_output_position for r in fresh.requests)


async def test_patience_ends(tmp_path: Path, redis_server: str, redis_client: object) -> None:
    async with (
        running_stack(tmp_path, redis_server, patience_s=0.5, resume_patience_s=0.5) as stack,
        opened(stack) as client,
    ):
        stack.shard.delay_s = 0.01
        stream = await client.chat.completions.create(
            model="chat", messages=ASK, max_tokens=4000, stream=True
        )
        received = aiter(stream)
        await anext(received)
        await stack.replicas["shard-0"].stop()
        with pytest.raises(openai.APIError) as caught:
            async for _ in received:
                pass
        assert "no shard could take the request" in caught.value.message
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model="chat", messages=ASK)
        assert refused.value.status_code == 503


async def test_a_tokenizer_dies_in_mid_answer(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    async with running_stack(tmp_path, redis_server) as stack, opened(stack) as client:
        stack.shard.delay_s = SLOW_S
        streams = await in_the_middle(client, 4)
        await stack.add_tokenizer("tokenizer-1")
        await stack.replicas["tokenizer-0"].stop()
        stack.shard.delay_s = 0
        assert await asyncio.gather(*streams) == [script_text(seed, 0, TOKENS) for seed in range(4)]


async def test_a_shard_that_drains_for_long_costs_only_patience(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    """It is still announced and refuses again and again; its successor comes late."""
    async with running_stack(tmp_path, redis_server) as stack, opened(stack) as client:
        stack.shard.draining = True
        asking = asyncio.create_task(streamed(client, 2, tokens=20))
        await until(lambda: len(stack.shard.requests) >= 3, timeout_s=PATIENCE_S)
        await stack.add_shard("successor", Shard())
        assert await asking == script_text(2, 0, 20)


@pytest.mark.parametrize(
    ("reason", "code", "most"), [("ENGINE_FAILED", "shards_died", 2), ("", "shards_lost", 5)]
)
async def test_a_request_that_kills_shards_does_not_go_round_for_ever(
    tmp_path: Path, redis_server: str, redis_client: object, reason: str, code: str, most: int
) -> None:
    class Cursed(Shard):
        async def _generate(self, request: object) -> AsyncIterator[object]:
            raise Unavailable("the engine died", reason=reason)
            yield

    async with running_stack(tmp_path, redis_server) as stack, opened(stack) as client:
        await stack.replicas["shard-0"].stop()
        for index in range(3):
            await stack.add_shard(f"cursed-{index}", Cursed())
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="chat", messages=ASK)
        assert caught.value.code == code
        assert sum(len(shard.requests) for shard in stack.shards.values()) <= most


async def test_several_answers_of_one_request_count_their_deaths_together(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    """Three at once on four shards: what the first two show is enough for all. Between the first
    death and the second, one of them may have gone on to another shard."""

    class Cursed(Shard):
        async def _generate(self, request: object) -> AsyncIterator[object]:
            raise Unavailable("the engine died", reason="ENGINE_FAILED")
            yield

    async with running_stack(tmp_path, redis_server) as stack, opened(stack) as client:
        await stack.replicas["shard-0"].stop()
        for index in range(4):
            await stack.add_shard(f"cursed-{index}", Cursed())
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="chat", messages=ASK, n=3)
        assert caught.value.code == "shards_died"
        assert sum(len(shard.requests) for shard in stack.shards.values()) <= 4


async def test_a_request_under_which_two_processes_died_is_given_to_no_third(
    tmp_path: Path, redis_server: str, redis_client: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are killed with -9 in the middle of its stream; the third shard never hears of it, and
    the log and the metrics have it."""
    async with running_stack(tmp_path, redis_server, shards=1) as stack, opened(stack) as client:
        await stack.replicas["shard-0"].stop()
        stream, seen, before = None, "", await poisoned(stack)
        for number in range(2):
            process = await shard_process(stack, f"doomed-{number}", 0.02)
            if stream is None:
                stream = aiter(
                    await client.chat.completions.create(
                        model="chat", messages=ASK, max_tokens=TOKENS, seed=3, stream=True
                    )
                )
            for _ in range(3):
                chunk = await anext(stream)
                seen += chunk.choices[0].delta.content or ""
            if number == 1:
                await stack.add_shard("third", Shard())
            process.kill()
            await process.wait()
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                seen += chunk.choices[0].delta.content or ""
        assert caught.value.code == "shards_died"
        assert script_text(3, 0, TOKENS).startswith(seen)
        assert not stack.shards["third"].requests
        told = [line for line in capsys.readouterr().err.splitlines() if "request.poison" in line]
        assert len(told) == 1
        assert "doomed-0" in told[0]
        assert "doomed-1" in told[0]
        assert await poisoned(stack) == before + 1


async def test_a_request_whose_revision_is_replaced_before_its_first_token_gets_the_new_one(
    tmp_path: Path, redis_server: str, redis_client: object
) -> None:
    """It was prepared for chat@1, whose only shard drains; chat@2 takes the name meanwhile."""
    async with running_stack(tmp_path, redis_server) as stack, opened(stack) as client:
        stack.shard.draining = True
        before, earlier = await booked(stack, "chat@1"), await booked(stack, "chat@2")
        asking = asyncio.create_task(streamed(client, 2, tokens=20))
        await until(lambda: len(stack.shard.requests) >= 2, timeout_s=PATIENCE_S)
        new = Shard(digest="sha256:" + "cd" * 32)
        await stack.add_shard("successor", new, artifact="chat@2")
        await stack.replicas["shard-0"].stop()
        assert await asking == script_text(2, 0, 20)
        assert [r.binding.weights_digest for r in new.requests] == [new.digest]
        more = earlier | {"ok": earlier.get("ok", 0) + 1}
        assert await booked(stack, "chat@2") == more
        assert await booked(stack, "chat@1") == before  # nor is it the old one's failure


async def booked(stack: Stack, revision: str) -> dict[str, float]:
    """Requests by outcome that count as that revision's."""
    page = await metrics(stack)
    line = r'^plinth_revision_requests_total\{model="chat",outcome="(\w+)",revision="%s"\} (\S+)$'
    found = re.findall(line % revision, page, re.MULTILINE)
    return {outcome: float(count) for outcome, count in found}


async def poisoned(stack: Stack) -> float:
    (count,) = re.findall(r"^plinth_poison_requests_total (\S+)$", await metrics(stack), re.M)
    return float(count)


async def metrics(stack: Stack) -> str:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        return (await client.get(f"{stack.url}/metrics")).text
