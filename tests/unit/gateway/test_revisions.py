"""What came of requests is counted for their canary, once, whatever becomes of connections."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from redis.asyncio import Redis

from cut_connections import CuttingRelay
from patience import PATIENCE_S
from plinth.gateway.generation.catalogue import ServedModel
from plinth.gateway.generation.failover import Replaced
from plinth.gateway.generation.revisions import Choice, Refusals, Revisions, outcome_of
from plinth.gateway.quotas.account import RateLimited
from plinth.shared import canary
from plinth.shared.canary import Canaries, Chosen
from plinth.shared.connection import connect
from plinth.shared.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
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
        revisions = Revisions(never, Canaries(redis), 600)
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


class HeldUp(Canaries):
    """Redis has chosen, and the answer is on its way until it is let through."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.chose, self.let_through = asyncio.Event(), asyncio.Event()

    async def choose(self, *arguments: Any, **more: Any) -> Chosen | None:
        chosen = await super().choose(*arguments, **more)
        self.chose.set()
        await self.let_through.wait()
        return chosen


async def test_who_hangs_up_while_it_is_chosen_for_is_counted_all_the_same(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its cohort would wait for it, and count it as lost."""
    monkeypatch.setattr(canary, "ROUTE_S", 10 * PATIENCE_S)
    canaries = HeldUp(redis_client)
    await canaries.open("chat", "run-1", stable="chat@1", canary="chat@2", share=0.5)
    catalogue: Any = AsyncMock()
    catalogue.revisions.return_value = tuple(
        ServedModel("chat", f"chat@{version}", "sha256:x", 100, 1) for version in (1, 2)
    )
    revisions = Revisions(catalogue, canaries, deadline_s=600)
    choosing = asyncio.create_task(revisions.choose("chat", Principal("t", "k", frozenset())))
    await asyncio.wait_for(canaries.chose.wait(), PATIENCE_S)
    choosing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await choosing
    canaries.let_through.set()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            state = await canaries.state("chat")
            assert state is not None
            (cohort,) = state.cohorts
            if cohort.settled["stable"]:
                break
            await asyncio.sleep(0.02)
    assert cohort.given == {"stable": 1, "canary": 0}
    assert cohort.tallies["stable"].unanswered == 1
    await revisions.drain()


def test_what_a_request_has_come_to() -> None:
    for error, outcome in [
        (asyncio.CancelledError(), "cancelled"),
        (Unavailable("no shard"), "error"),
        (DeadlineExceeded("too late"), "late"),
        (RuntimeError("a bug"), "error"),
        (ResourceExhausted("shards are full"), "error"),
        (RateLimited("quota"), "refused"),
        (Replaced("other weights"), "refused"),
        (InvalidArgument("too long"), "refused"),
    ]:
        assert outcome_of(error, began=False) == outcome
        assert outcome_of(error, began=True) == ("error" if outcome == "late" else outcome)


@pytest.mark.parametrize("answered", [False, True])
def test_what_a_canary_refuses_is_its_failure_where_the_stable_revision_answers(
    answered: bool,
) -> None:
    stable, new = (ServedModel("m", f"m@{n}", "sha256:x", 100, 1) for n in (1, 2))
    principal = Principal("t", "k", frozenset())
    for error, to_blame in [
        (InvalidArgument("too long"), True),
        (Replaced("other weights"), False),
        (RateLimited("quota"), False),
    ]:
        revisions = MagicMock()
        refusals = Refusals(revisions, principal)
        refusals.note(Choice(new, "run-1", "canary", stable, cohort=3), error)
        if answered:
            refusals.answered()
        refusals.book()
        outcome = "error" if answered and to_blame else "refused"
        counted = Choice(new, "run-1", "canary", cohort=3)
        revisions.book.assert_called_once_with(counted, principal, outcome)
    # What is booked elsewhere: errors, and what the stable revision refuses.
    revisions = MagicMock()
    refusals = Refusals(revisions, principal)
    refusals.note(Choice(new, "run-1", "canary", stable, cohort=3), Unavailable("no shard"))
    refusals.note(Choice(stable, "run-1", "stable", cohort=3), InvalidArgument("too long"))
    refusals.book()
    revisions.book.assert_not_called()
