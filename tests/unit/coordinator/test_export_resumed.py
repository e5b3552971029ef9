"""An export of pairs, broken anywhere and resumed, gives the lines of one that was not, whatever is
judged meanwhile."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from plinth.coordinator.preferences import results
from plinth.coordinator.preferences.service import PreferenceServicer
from plinth.coordinator.preferences.specs import make_task
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import InvalidArgument, ResourceExhausted
from plinth.v1 import chat_pb2
from plinth.v1 import preferences_pb2 as pb
from scripted_stages import Caller

COLLECTION = "c"


def servicer(redis: Redis) -> PreferenceServicer:
    nothing: Any = None
    return PreferenceServicer(redis, nothing, nothing, nothing, "token", nothing)


async def judge(redis: Redis, name: str, rng: random.Random) -> None:
    """A task of its own, or one more judgement of it."""
    records = servicer(redis)._records(COLLECTION)
    spec = pb.PreferenceTaskSpec(
        prompt=[chat_pb2.ChatMessage(role="user", content=f"Ask {name}")],
        responses=[pb.PreferenceResponse(text=f"{name} {letter}") for letter in "abc"],
    )
    task = make_task(spec, COLLECTION, "task.spec", task_id=name)
    await records.ensure(task)
    ids = [response.response_id for response in task.responses]
    rng.shuffle(ids)
    await records.add(
        rec.JudgementRecord(
            task_id=name,
            source=pb.JUDGEMENT_SOURCE_RULE,
            annotator=f"rule-{rng.randrange(1 << 30)}",
            ranking=[pb.ResponseTier(response_ids=[one]) for one in ids],
            judged_unix_ms=1,
        )
    )


async def exported(redis: Redis, rng: random.Random, *, breaks: bool) -> list[bytes]:
    lines: list[bytes] = []
    token = ""
    while True:
        request = pb.ExportPairsRequest(parent=f"collections/{COLLECTION}", resume_token=token)
        call = servicer(redis).ExportPairs(request, Caller())
        try:
            for _ in range(rng.randint(1, 3) if breaks else 10_000):
                message = await anext(call)
                lines += message.jsonl.splitlines()
                token = message.resume_token
        except StopAsyncIteration:
            return lines
        finally:
            await call.aclose()
        # Of a task that was exported already, of one that is to come, and of a new one.
        for name in ("t0", "t9", f"new-{rng.randrange(1 << 30)}"):
            with suppress(ResourceExhausted):  # a task has as many judgements as it may
                await judge(redis, name, rng)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk_bytes", [1, 700])
async def test_each_line_comes_once(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch, seed: int, chunk_bytes: int
) -> None:
    monkeypatch.setattr(results, "_CHUNK_BYTES", chunk_bytes)
    rng = random.Random(seed)
    for number in range(10):
        await judge(redis_client, f"t{number}", rng)
    whole = await exported(redis_client, rng, breaks=False)
    assert len(whole) == 30  # three pairs of each
    assert await exported(redis_client, rng, breaks=True) == whole
    assert len(await exported(redis_client, rng, breaks=False)) > len(whole)  # and now the others


@pytest.mark.parametrize("token", ["7", "end", "1-", "1-2-3", "1-" + "9" * 19])
async def test_a_token_of_nobody_is_refused(redis_client: Redis, token: str) -> None:
    call = servicer(redis_client).ExportPairs(pb.ExportPairsRequest(resume_token=token), Caller())
    with pytest.raises(InvalidArgument, match="is none of ExportPairs'"):
        await anext(call)
