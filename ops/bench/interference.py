"""What a policy run costs the people who chat, and they the run: one shard, both at once.

1. Requests alone: time to first token on an idle stack.
2. The run alone: seconds per update.
3. Both: `--requests` requests spread over the run, whatever phase it is in.

    python ops/bench/interference.py --requests 200

Prints one JSON line per measurement; the last one holds the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import openai

from plinth.cli.gateway_access import api_key, stack_address
from plinth.cli.run_client import RunClient
from plinth.cluster.layout import StackPlan
from plinth.cluster.serve_model import serve_model
from plinth.cluster.stack import Stack
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from plinth.v1 import runs_pb2 as pb

TOKENS = 8
PATIENCE_S = 180.0
# A policy of 6 million parameters that need not learn anything: the work is what counts.
PIPELINE = """
name: interference
steps:
  corpus: {{kind: data, builtin: stdlib, max_bytes: 1_000_000, validation_fraction: 0.05}}
  vocabulary: {{kind: tokenizer, corpus: $corpus, vocab_size: 2048}}
  dataset: {{kind: data, corpus: $corpus, tokenizer: $vocabulary}}
  base:
    kind: train
    objective: clm
    dataset: $dataset
    model: {{family: llama, layers: 6, hidden: 256, heads: 4, context: 256, tie_embeddings: true}}
    batch_size: 4
    steps: 20
    learning_rate: 1e-3
  preferences: {{kind: data, builtin: stdlib-preferences, max_bytes: 200_000}}
  pairs: {{kind: data, corpus: $preferences, tokenizer: $vocabulary}}
  judge:
    kind: train
    objective: reward
    dataset: $pairs
    init_from: $base
    batch_size: 4
    steps: 10
    learning_rate: 1e-3
  policy:
    kind: train
    objective: ppo
    dataset: $pairs
    init_from: $base
    reward: $judge
    batch_size: 16
    steps: {updates}
    learning_rate: 1e-5
    seed: {seed}
    policy: {{max_new_tokens: 48, rollouts: shards}}
"""


@dataclass
class Watched:
    """A run's updates, by the time at which they were seen."""

    seen: dict[int, float] = field(default_factory=dict)
    ended: pb.Run | None = None

    def over(self) -> bool:
        """Whether there is no run any more to be beside of."""
        return self.ended is not None and self.ended.status.state != pb.RUN_STATE_RUNNING

    def seconds_per_update(self) -> float:
        """Between the first update seen and the last."""
        first, last = min(self.seen), max(self.seen)
        return (self.seen[last] - self.seen[first]) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--updates", type=int, default=80)
    parser.add_argument("--solo-updates", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plinth-bench-") as data:
        settings = load_settings(data_dir=Path(data), gateway__port=0, gateway__grpc_port=0)
        stack = Stack.up(settings, plan=StackPlan())
        try:
            measure(stack, options)
        finally:
            stack.down()


def measure(stack: Stack, options: argparse.Namespace) -> None:
    wanted = serve_model(stack.settings, "default")
    DeploymentRecords(ArtifactStore(stack.settings.store())).put(wanted)
    asyncio.run(ask(stack, wanted.name, 5, patience_s=PATIENCE_S))  # until it is served, and warm
    idle = asyncio.run(ask(stack, wanted.name, options.requests))
    tell("requests alone", **figures(idle))
    solo = watch(stack, options.solo_updates, seed=1)
    tell("run alone", updates=options.solo_updates, seconds_per_update=solo.seconds_per_update())
    both, busy = together(stack, wanted.name, options)
    tell("requests beside the run", **figures(busy))
    tell("run beside requests", seconds_per_update=both.seconds_per_update())
    tell(
        "ratios",
        ttft_median=statistics.median(busy) / statistics.median(idle),
        ttft_p95=p95(busy) / p95(idle),
        run_speed=solo.seconds_per_update() / both.seconds_per_update(),
    )


def together(stack: Stack, model: str, options: argparse.Namespace) -> tuple[Watched, list[float]]:
    """The run, and the requests while it updates."""
    watched = Watched()
    thread = threading.Thread(target=watch, args=(stack, options.updates, 2, watched))
    thread.start()
    while not watched.seen:
        time.sleep(0.05)
    gap_s = 0.15
    busy = asyncio.run(ask(stack, model, options.requests, gap_s=gap_s, over=watched.over))
    during = dict(watched.seen)
    thread.join()
    watched.seen = during  # what came after the last request is the run alone again
    return watched, busy


def watch(stack: Stack, updates: int, seed: int, watched: Watched | None = None) -> Watched:
    """Submits the run and notes its updates until it ends."""
    watched = watched or Watched()
    run_id = f"interference-{seed}-{updates}"
    with RunClient(stack_address(stack.settings), api_key(stack.settings)) as client:
        client.submit(run_id, PIPELINE.format(updates=updates, seed=seed), {})
        for run in client.watch(run_id):
            step = next(step for step in run.status.steps if step.step_id == "policy")
            done = round(step.progress * updates)
            if done and done not in watched.seen:
                watched.seen[done] = time.monotonic()
            watched.ended = run
    assert watched.ended is not None
    if watched.ended.status.state != pb.RUN_STATE_SUCCEEDED:
        raise SystemExit(watched.ended.status.error)
    return watched


async def ask(
    stack: Stack,
    model: str,
    count: int,
    *,
    gap_s: float = 0.0,
    patience_s: float = 0.0,
    over: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Times to first token of short streamed answers, one after another, in seconds; fewer than
    `count` when it is `over` before."""
    state = stack.state()
    assert state is not None
    base = f"http://{state.gateway_host}:{state.gateway_port}/v1"
    chance = random.Random(count)
    times: list[float] = []
    end = time.monotonic() + patience_s
    async with openai.AsyncOpenAI(
        api_key=api_key(stack.settings), base_url=base, max_retries=0
    ) as client:
        while len(times) < count and not over():
            try:
                times.append(await first_token(client, model, chance.randrange(10**6)))
            except openai.OpenAIError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.2)
            if gap_s:
                await asyncio.sleep(chance.expovariate(1 / gap_s))
    return times


async def first_token(client: openai.AsyncOpenAI, model: str, number: int) -> float:
    began, first = time.monotonic(), 0.0
    stream = await client.chat.completions.create(
        model=model,
        # No two alike, or the prefix cache would answer for the engine.
        messages=[{"role": "user", "content": f"{number}: name a city and say why you like it."}],
        max_tokens=TOKENS,
        stream=True,
    )
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.monotonic()
    return first - began


def p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def figures(times: list[float]) -> dict[str, float]:
    return {
        "requests": len(times),
        "ttft_median_s": statistics.median(times),
        "ttft_p95_s": p95(times),
    }


def tell(what: str, **values: float) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"measured": what, **rounded}), flush=True)


if __name__ == "__main__":
    main()
