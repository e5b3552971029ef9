"""What came of requests is counted for their canary, once, whatever becomes of connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from cut_connections import CuttingRelay
from patience import PATIENCE_S
from plinth.gateway.catalogue import ServedModel
from plinth.gateway.revisions import Choice, Revisions
from plinth.shared import canary
from plinth.shared.canary import Canaries
from plinth.shared.connection import connect
from plinth.shared.identity import Principal


async def test_what_gateways_count_is_sent_again_and_counted_once(
    redis_server: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through connections that lose what Redis answers, and through more losses than a client
    tries again by itself."""
    monkeypatch.setattr(canary, "ROUTE_S", 10 * PATIENCE_S)
    canaries = Canaries(redis_client)
    await canaries.open("chat", "run-1", stable="chat@1", canary="chat@2", share=0.5)
    model = ServedModel("chat", "chat@2", "sha256:x", 100, 1)
    async with CuttingRelay(redis_server) as relay:
        redis = connect(relay.url)
        never: Any = None
        revisions = Revisions(never, Canaries(redis))
        relay.lose = 150
        for _ in range(300):
            choice = Choice(model, "run-1", "canary")
            revisions.book(choice, Principal("t", "k", frozenset()), "ok", tokens=2)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                state = await canaries.state("chat")
                assert state is not None
                if state.tallies["canary"].requests >= 300:
                    break
                await asyncio.sleep(0.02)
        await revisions.drain()
        assert relay.lost == 150
        await redis.aclose()
    state = await canaries.state("chat")
    assert state is not None
    assert (state.tallies["canary"].requests, state.tallies["canary"].tokens) == (300, 600)
