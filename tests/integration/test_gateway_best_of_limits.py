"""What the best of several answers costs a tenant, and what it does without a reward stage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway_stages import Said, Shard, Stack, running_stack, until
from patience import PATIENCE_S
from plinth.gateway.keys.api_keys import KeyStore
from plinth.reward.service import build as build_reward
from plinth.shared.stage import RunningStage, StageContext, run_stage

PATH = "/v1/chat/completions"
OK: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
ANSWERS = [Said.evenly(f"The answer is {n}.", -0.1 * (5 - n)) for n in range(5)]
EACH = len(ANSWERS[0].logprobs)
PROMPT = len("<user>hi\n<assistant>")


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: object) -> AsyncIterator[Stack]:
    async with running_stack(
        tmp_path,
        redis_server,
        first=Shard(says=ANSWERS),
        patience_s=0.3,
        tenant_tokens_per_minute=PROMPT + 2 * EACH,
    ) as running:
        yield running


@pytest.mark.parametrize(("best_of", "then"), [(1, 200), (3, 429)])
async def test_a_quota_pays_for_every_answer(
    stack: Stack, redis_client: Redis, best_of: int, then: int
) -> None:
    """A minute has room for two answers: one leaves some of it, the best of three a debt."""
    key, _ = await KeyStore(redis_client).create("acme", {"inference"})
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=PATIENCE_S) as http:
        first = await http.post(PATH, json={**OK, "best_of": best_of})
        assert first.status_code == 200
        assert len(first.json()["choices"]) == 1
        assert first.json()["usage"]["completion_tokens"] == best_of * EACH
        again = await http.post(PATH, json=OK)
        assert again.status_code == then, again.text


async def test_without_a_reward_stage_it_is_503_and_nothing_is_made(stack: Stack) -> None:
    headers = {"authorization": f"Bearer {stack.key}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=PATIENCE_S) as http:
        select: dict[str, Any] = {"by": "reward", "rules": [{"rule": {"kind": "lower_case"}}]}
        body = {**OK, "best_of": 2, "select": select}
        answer = await http.post(PATH, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "no_replica"), error
        assert "reward" in error["message"]
        assert stack.shard.requests == []
        # A vote of equal voices needs nobody.
        body["select"] = {"by": "vote", "pattern": r"answer is (\d)"}
        answer = await http.post(PATH, json=body)
        assert answer.json()["choices"][0]["plinth"]["answer"] == "0"


async def reward_stage(stack: Stack) -> tuple[StageContext, RunningStage]:
    context = await StageContext.open(stack.settings, stage="reward")
    return context, await run_stage(context, build_reward(context))


async def test_a_reward_stage_that_goes_in_the_middle_is_waited_for(
    redis_server: str, redis_client: object, tmp_path: Path
) -> None:
    shard = Shard(says=ANSWERS, delay_s=0.01)
    async with running_stack(tmp_path, redis_server, first=shard, patience_s=20) as stack:
        context, running = await reward_stage(stack)
        headers = {"authorization": f"Bearer {stack.key}"}
        rules = [{"rule": {"kind": "contains", "phrases": ["3"]}}]
        body = {**OK, "best_of": 5, "select": {"by": "reward", "rules": rules}}
        async with httpx.AsyncClient(
            base_url=stack.url, headers=headers, timeout=PATIENCE_S
        ) as http:
            asking = asyncio.create_task(http.post(PATH, json=body))
            await until(lambda: shard.running == 5)
            await running.stop(5)
            await context.close()
            await until(lambda: shard.running == 0)  # all is made, and nobody is there to score it
            context, running = await reward_stage(stack)
            answer = await asking
            assert answer.json()["choices"][0]["plinth"]["sample"] == 3, answer.text
            assert len(shard.requests) == 5
            await running.stop(5)
            await context.close()
