"""The coordinator's preferences behind a gateway: its real service on real Redis and store, beside
scripted shards that also score."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway_stages import DIGEST, TOKEN, Replica, Shard, Stack, running_stack
from patience import PATIENCE_S
from plinth.coordinator.collection_uses import CollectionUses
from plinth.coordinator.preferences.stage import Preferences
from plinth.coordinator.runs import RunRecords
from plinth.internal.v1 import inference_pb2
from plinth.shared.connection import connect
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.store import ArtifactStore


@dataclass
class JudgingShard(Shard):
    """Gives the words "A" and "B", "1" to "10" the log-probs of a judge who likes long texts;
    `bias` is added to "A", whatever stands there."""

    bias: float = 0.0
    scored: int = 0

    async def Score(self, request: Any, context: Any) -> Any:
        results = []
        for item in request.items:
            self.scored += 1
            assert request.binding.weights_digest == DIGEST
            prompt = bytes(item.ids[: item.from_position]).decode()
            tail = list(item.ids[item.from_position :])
            word = bytes(id_ for id_ in tail if id_ < 256).decode()
            logprobs = [0.0] * len(tail)
            logprobs[0] = self.opinion(prompt, word)
            results.append(inference_pb2.ScoreResult(logprobs=logprobs))
        return inference_pb2.ScoreResponse(results=results)

    def opinion(self, prompt: str, word: str) -> float:
        if word in ("A", "B"):
            text = prompt.split(f"[Response {word}]\n")[1].split("\n\n", maxsplit=1)[0]
            return len(text) + (self.bias if word == "A" else 0.0) - 1000.0
        right = min(10, len(prompt.split("[Response]\n")[1].split("\n\n", maxsplit=1)[0]))
        return -abs(int(word) - right) * 20.0


@dataclass
class PreferenceStack:
    """A gateway with scripted stages and the coordinator's preferences."""

    stack: Stack
    preferences: Preferences
    store: ArtifactStore
    redis: Any

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key or self.stack.key}"}
        return httpx.AsyncClient(base_url=self.stack.url, headers=headers, timeout=PATIENCE_S)


@asynccontextmanager
async def running_preferences(
    data_dir: Path, redis_url: str, **gateway: Any
) -> AsyncIterator[PreferenceStack]:
    """ "chat" is served by a JudgingShard."""
    async with running_stack(data_dir, redis_url, first=JudgingShard(), **gateway) as stack:
        redis = connect(redis_url)
        registry = Registry(redis)
        clients = StageClients(registry, stack.settings, TOKEN)
        store = ArtifactStore(stack.settings.store())
        preferences = Preferences(
            redis,
            store,
            registry,
            clients,
            "coordinator-0",
            TOKEN,
            CollectionUses(RunRecords(redis)).of,
        )
        replica = Replica(
            stack.settings, redis_url, "coordinator", "coordinator-0", preferences.service()
        )
        preferences.start()
        await replica.start({})
        stack.replicas["coordinator-0"] = replica
        try:
            yield PreferenceStack(stack, preferences, store, redis)
        finally:
            preferences.check()
            await preferences.stop()
            await clients.close()
            await redis.aclose()
