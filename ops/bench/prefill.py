"""How long a short prompt waits beside a long one: SmolLM2 behind the REST API, two clients.

1. A prompt of 5 tokens on an idle shard: time to first token.
2. A prompt of 8,000 tokens alone: its time to first token, and so that of one step of its prefill.
3. The short ones while long ones are computed.

    python ops/bench/prefill.py --requests 40

Prints one JSON line per measurement; `of_bar` is the median of 3 over 1.5 times that of 1
plus one step of the prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

import openai
from interference import figures, tell

from plinth.cli.gateway_access import api_key
from plinth.cluster.layout import StackPlan
from plinth.cluster.serve_model import serve_model
from plinth.cluster.stack import Stack
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import Settings, load_settings
from plinth.shared.store import ArtifactStore

SHORT, LONG = 5, 8_000
CACHE_BYTES = 1 << 30  # the context of 8,192 tokens takes 377 MB
IDS = range(1_000, 40_000)  # ordinary tokens
START_S = 180.0


class RestClient:
    """The REST API of a stack, asked with token ids."""

    def __init__(self, stack: Stack, model: str, seed: int) -> None:
        state = stack.state()
        assert state is not None
        self._client = openai.AsyncOpenAI(
            api_key=api_key(stack.settings),
            base_url=f"http://{state.gateway_host}:{state.gateway_port}/v1",
            max_retries=0,
            timeout=600,
        )
        self._model, self._dice = model, random.Random(seed)

    async def first_token(self, length: int) -> float:
        """Seconds until the first token of an answer to a prompt that was never asked before."""
        prompt = self._dice.choices(IDS, k=length)
        began, first = time.monotonic(), 0.0
        stream = await self._client.completions.create(
            model=self._model, prompt=prompt, max_tokens=2, stream=True
        )
        async for _ in stream:
            first = first or time.monotonic()
        return first - began

    async def until_served(self) -> None:
        end = time.monotonic() + START_S
        while True:
            try:
                await self.first_token(SHORT)
                return
            except openai.OpenAIError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)

    async def beside(self, count: int) -> list[float]:
        """First tokens of short prompts that came while a long one was computed."""
        times: list[float] = []
        while len(times) < count:
            long = asyncio.create_task(self.first_token(LONG))
            await asyncio.sleep(self._dice.uniform(0.2, 1.0))
            while not long.done() and len(times) < count:
                took = await self.first_token(SHORT)
                if not long.done():  # else part of it was on an idle shard
                    times.append(took)
                await asyncio.sleep(self._dice.uniform(0.0, 0.5))
            await long
        return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plinth-bench-") as data:
        settings = load_settings(
            data_dir=Path(data),
            gateway__port=0,
            gateway__grpc_port=0,
            engine__kv_cache_bytes=CACHE_BYTES,
        )
        stack = Stack.up(settings, plan=StackPlan())
        try:
            wanted = serve_model(stack.settings, "default")
            DeploymentRecords(ArtifactStore(stack.settings.store())).put(wanted)
            asyncio.run(measure(RestClient(stack, wanted.name, options.seed), options, settings))
        finally:
            stack.down()


async def measure(client: RestClient, options: argparse.Namespace, settings: Settings) -> None:
    await client.until_served()
    idle = [await client.first_token(SHORT) for _ in range(options.requests)]
    tell("short prompts on an idle shard", **figures(idle))
    alone = [await client.first_token(LONG) for _ in range(3)]
    steps = math.ceil(LONG / settings.engine.max_batch_tokens)
    step = statistics.median(alone) / steps
    tell("a long prompt alone", ttft_median_s=statistics.median(alone), steps=steps, step_s=step)
    beside = await client.beside(options.requests)
    tell("short prompts beside long ones", **figures(beside))
    bar = 1.5 * statistics.median(idle) + step
    tell("ratios", bar_s=bar, of_bar=statistics.median(beside) / bar)


if __name__ == "__main__":
    main()
