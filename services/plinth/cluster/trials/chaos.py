"""`helm test`, second part: a shard's pod is killed under a stream, which must not show it.

    python -m plinth.cluster.trials.chaos --selector LABELS [--model NAME]

A seeded answer is taken once undisturbed. Then again, and after its first tokens the pod of the
busiest shard is deleted without grace. The second answer must have the same ids, none missing and
none twice. Needs two shards of the model.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from plinth.cluster.trials.pods import Pods
from plinth.cluster.trials.visitor import GatewayUrls, Visitor, visit
from plinth.shared.errors import FailedPrecondition, Internal, PlinthError
from plinth.shared.registry import Registry, Replica
from plinth.shared.rpc.client import announced_load, holds
from plinth.shared.settings import load_settings

PROMPT, SEED = "A shard dies and nobody notices, because", 11
KILL_AFTER = 8  # tokens
BUSY_S = 20.0  # announcements come every two seconds


async def run(visitor: Visitor, pods: Pods, selector: str, model: str, count: int) -> None:
    """Raises when a token is lost, repeated or different; FailedPrecondition without two shards."""
    registry = Registry(visitor.redis)
    shards = await registry.replicas("inference")
    model = model or next((b["model"] for shard in shards for b in shard.bindings), "")
    held = [shard for shard in shards if model and holds(shard, model)]
    if len(held) < 2:
        raise FailedPrecondition(
            f"{model or 'no model'} has {len(held)} shards; a shard's death needs a second one to "
            "go on at: raise its shards, and stages.inference.pods to as many"
        )
    calm = [token async for token in visitor.tokens(model, PROMPT, count, SEED)]
    # Else the shard of the first answer still looks busy, and the wrong one is killed.
    await _quiet(registry, model)
    seen: list[int] = []
    victim = ""
    async for token in visitor.tokens(model, PROMPT, count, SEED):
        seen.append(token)
        if len(seen) == KILL_AFTER:
            shard = await _busiest(registry, model)
            address = shard.address.rpartition(":")[0].strip("[]")
            victim = await asyncio.to_thread(pods.by_address, address, selector)
            await asyncio.to_thread(pods.kill, victim)
            print(f"killed  {victim} after {len(seen)} tokens", flush=True)
    if not victim:
        raise Internal(f"the stream ended after {len(seen)} tokens, before a shard was killed")
    if seen != calm:
        wrong = next(
            (i for i, pair in enumerate(zip(seen, calm, strict=False)) if pair[0] != pair[1]), None
        )
        where = f"differs from token {wrong} on" if wrong is not None else f"has {len(seen)} tokens"
        raise Internal(f"the answer {where}, of {len(calm)}: the death of {victim} showed")
    print(f"stream  {len(seen)} tokens, none lost, none twice", flush=True)


async def _quiet(registry: Registry, model: str) -> None:
    """Returns once no shard says that it runs anything; where others ask, after BUSY_S."""
    end = asyncio.get_running_loop().time() + BUSY_S
    while asyncio.get_running_loop().time() < end:
        shards = [s for s in await registry.replicas("inference") if holds(s, model)]
        if not any(announced_load(shard)[1] for shard in shards):
            return
        await asyncio.sleep(0.2)


async def _busiest(registry: Registry, model: str) -> Replica:
    """The shard that says it runs something; the stream is one that lasts."""
    end = asyncio.get_running_loop().time() + BUSY_S
    while asyncio.get_running_loop().time() < end:
        shards = [s for s in await registry.replicas("inference") if holds(s, model)]
        busy = [s for s in shards if announced_load(s)[1] > 0]
        if busy:
            return max(busy, key=lambda shard: announced_load(shard)[1])
        await asyncio.sleep(0.2)
    raise Internal("no shard announced that it runs the stream")


async def _main(selector: str, model: str, count: int) -> int:
    async with visit(load_settings(), GatewayUrls.of_environment()) as visitor:
        await run(visitor, Pods(), selector, model, count)
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="plinth.cluster.trials.chaos")
    parser.add_argument("--selector", required=True, help="labels of the shards' pods")
    parser.add_argument("--model", default="", help="a served name; default: the first")
    parser.add_argument("--tokens", type=int, default=400, help="of the answer: some ten seconds")
    given = parser.parse_args(arguments)
    try:
        return asyncio.run(_main(given.selector, given.model, given.tokens))
    except PlinthError as error:
        print(f"FAILED  {error.message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
