"""A visitor with a key of its own for as long as a trial runs: REST, gRPC, the queue."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from plinth.client import AsyncClient, Policy
from plinth.gateway.keys.api_keys import KeyStore
from plinth.shared.connection import connect
from plinth.shared.errors import FailedPrecondition, Unavailable
from plinth.shared.settings import Settings
from plinth.v1 import generation_pb2, sampling_pb2

TIMEOUT_S = 120.0
TENANT = "helm-test"
# What breaks is to be seen, and not mended by the client.
_AS_IT_IS = Policy(patience_s=0.0, stream_patience_s=0.0)


@dataclass(frozen=True)
class GatewayUrls:
    """Where the gateway is: "http://host:8080" and "host:8081"."""

    rest: str
    grpc: str

    @classmethod
    def of_environment(cls) -> GatewayUrls:
        """From PLINTH_URL and TRIAL_GRPC, which the chart's hooks set."""
        try:
            return cls(os.environ["PLINTH_URL"].rstrip("/"), os.environ["TRIAL_GRPC"])
        except KeyError as error:
            raise FailedPrecondition(f"{error} is not set; run this by `helm test`") from error


class Visitor:
    """One key at both APIs."""

    def __init__(self, urls: GatewayUrls, key: str, redis: Redis, plinth: AsyncClient) -> None:
        self.redis = redis
        self._urls, self._key, self._plinth = urls, key, plinth

    def rest(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that `path` answers. Unavailable with the status and what it said."""
        request = urllib.request.Request(  # noqa: S310 - the chart's own gateway
            self._urls.rest + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise Unavailable(f"{path} answered {error.code}: {said}") from error
        except OSError as error:
            raise Unavailable(f"{self._urls.rest} does not answer: {error}") from error

    async def tokens(self, model: str, prompt: str, count: int, seed: int) -> AsyncIterator[int]:
        """Ids of a seeded completion of exactly `count` tokens, as they come. PlinthError: what the
        gateway ends it with, or that it can't be reached."""
        sampling = sampling_pb2.SamplingParams(
            max_tokens=count, ignore_eos=True, temperature=1.0, seed=seed
        )
        stream = self._plinth.generation.stream_complete(
            model,
            prompt=prompt,
            options=generation_pb2.GenerationOptions(sampling=sampling),
            timeout=TIMEOUT_S,
        )
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                for token in piece.tokens:
                    yield token.id


@asynccontextmanager
async def visit(settings: Settings, urls: GatewayUrls) -> AsyncIterator[Visitor]:
    """A visitor whose key is revoked at the end, however that comes."""
    if settings.redis_url is None:
        raise FailedPrecondition("PLINTH_REDIS_URL is not set; run this by `helm test`")
    redis = connect(settings.redis_url.get_secret_value())
    store = KeyStore(redis)
    try:
        plain, record = await store.create(TENANT, {"inference"}, "helm test")
        try:
            async with AsyncClient(urls.grpc, plain, policy=_AS_IT_IS) as plinth:
                yield Visitor(urls, plain, redis, plinth)
        finally:
            await store.revoke(record.key_id)
    finally:
        await redis.aclose()
