"""A real model under real load gets a second shard, and gives it back while answers run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import openai
import pytest

from checkpoints import byte_tokenizer, random_llama
from plinth.cli.gateway_access import api_key
from plinth.cluster.serve_model import serve_model
from plinth.models.publish import import_model
from plinth.shared.store import ArtifactStore
from real_stack import RealStack, until

pytestmark = pytest.mark.slow
TOKENS = 200


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    """A shard that answers one request at a time, and may become two."""
    folder = tmp_path_factory.mktemp("t")
    source = byte_tokenizer(random_llama(folder / "hf", vocab_size=259, context=1024))
    up = RealStack.up(
        folder / "data",
        shards=0,
        engine={"max_running": 1},
        scaling={"waiting": 1.0, "over_s": 12.0, "down_after_s": 3.0},
    )
    try:
        settings = up.stack.settings
        import_model(ArtifactStore(settings.store()), str(source), "tiny", workspace=folder / "w")
        serve_model(settings, "tiny", shards=1, max_shards=2)
        until(lambda: len(up.replicas("inference")) == 1, "the shard")
        yield RealStack(up.stack, api_key(settings), "tiny", up.up_s)
    finally:
        up.down()


async def _answer(client: openai.AsyncOpenAI) -> str:
    stream = await client.completions.create(
        model="tiny", prompt="To be", max_tokens=TOKENS, seed=7, stream=True
    )
    return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])


async def _ask_until(real: RealStack, clients: int, shards: int) -> list[str]:
    """What so many clients get who ask again and again, until there are so many shards."""
    answers: list[str] = []
    async with real.openai() as client:

        async def ask() -> None:
            while True:
                answers.append(await _answer(client))

        asking = [asyncio.create_task(ask()) for _ in range(clients)]
        counted = asyncio.create_task(
            asyncio.to_thread(
                until, lambda: len(real.replicas("inference")) == shards, f"{shards} shards"
            )
        )
        # Whoever fails ends the wait.
        await asyncio.wait([counted, *asking], return_when=asyncio.FIRST_COMPLETED)
        for task in asking:
            if task.done():
                task.result()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await counted
    return answers


async def test_load_brings_a_second_shard_and_its_end_takes_it_away(tiny: RealStack) -> None:
    busy = await _ask_until(tiny, clients=6, shards=2)
    # One client alone keeps a shard below its targets; its answers go on while the other goes.
    quiet = await _ask_until(tiny, clients=1, shards=1)
    assert len(busy) > 6
    assert quiet
    assert all(busy)
    assert len({*busy, *quiet}) == 1, "a seed's answer is the same, whoever came and went"
