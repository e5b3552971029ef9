"""`helm test`, first part: an answer over REST, the same over gRPC, and a job through the queue.

    python -m plinth.cluster.trials.smoke [--model NAME]

Each step prints one line; the first that fails ends it with code 1 and says what to do.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import uuid

from plinth.cluster.trials.visitor import GatewayUrls, Visitor, visit
from plinth.shared.api.structs import struct_of
from plinth.shared.errors import FailedPrecondition, Internal, PlinthError
from plinth.shared.rewards import RewardTasks
from plinth.shared.settings import load_settings
from plinth.v1 import rewards_pb2

PROMPT, TOKENS, SEED = "Plinth stands.", 8, 7
JOB_S = 60.0


async def run(visitor: Visitor, model: str) -> None:
    """Raises at the first step that fails. `model`: a served name; empty: the first there is."""
    served = [one["id"] for one in (await asyncio.to_thread(visitor.rest, "/v1/models"))["data"]]
    if not served or (model and model not in served):
        raise FailedPrecondition(
            f"{f'{model} is not' if model else 'no model is'} served: import one and deploy it "
            "as the chart's notes say, then run `helm test` again"
        )
    model = model or served[0]
    _say(f"REST    /v1/models lists {', '.join(served)}")
    body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "seed": SEED, "temperature": 1}
    answer = await asyncio.to_thread(visitor.rest, "/v1/completions", body)
    if answer["usage"]["completion_tokens"] < 1:
        raise Internal(f"{model} made no token: {answer}")
    _say(f"REST    {model} made {answer['usage']['completion_tokens']} tokens")
    first = [token async for token in visitor.tokens(model, PROMPT, TOKENS, SEED)]
    again = [token async for token in visitor.tokens(model, PROMPT, TOKENS, SEED)]
    if first != again or len(first) != TOKENS:
        raise Internal(f"one seed gave two answers over gRPC: {first} and {again}")
    _say(f"gRPC    {len(first)} tokens, the same again with the same seed")
    await _job(visitor)


async def _job(visitor: Visitor) -> None:
    """A reward by rule: queued in Redis, claimed by a reward replica, its result stored."""
    tasks = RewardTasks(visitor.redis, "helm-test")
    id = f"helm-test-{uuid.uuid4().hex}"
    source = rewards_pb2.RewardSource(
        name="short", rule=struct_of({"kind": "max_words", "n": 3}, "rule")
    )
    items = [
        rewards_pb2.RewardItem(response_text=text) for text in ("two words", "far too many, so")
    ]
    await tasks.submit(id, rewards_pb2.ScoreRewardsRequest(sources=[source], items=items))
    scored = [reward.total for reward in (await tasks.wait(id, timeout_s=JOB_S)).rewards]
    if scored != [1.0, 0.0]:
        raise Internal(f"the job's rewards are {scored}, not 1 and 0")
    _say("queue   a reward task was claimed, scored and stored")


def _say(line: str) -> None:
    print(line, flush=True)


async def _main(model: str) -> int:
    async with visit(load_settings(), GatewayUrls.of_environment()) as visitor:
        await run(visitor, model)
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="plinth.cluster.trials.smoke")
    parser.add_argument("--model", default="", help="a served name; default: the first")
    try:
        return asyncio.run(_main(parser.parse_args(arguments).model))
    except PlinthError as error:
        print(f"FAILED  {error.message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
