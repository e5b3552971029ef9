"""Which revision of a model answers a request, and what came of it.

A request belongs to one revision from its tokenizer to its last token; only before the first
piece may a request whose canary has failed go to the stable revision instead. Redis keeps the
canary's share over all gateways; while it is away the stable revision answers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from plinth.gateway import metrics
from plinth.gateway.catalogue import Catalogue, ServedModel
from plinth.gateway.search import SHARDS_DIED
from plinth.shared.canary import Canaries, answer_key
from plinth.shared.errors import (
    DeadlineExceeded,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.identity import Principal, current_request_id
from plinth.shared.telemetry import get_logger

MODEL_HEADER = "x-plinth-model"  # the revision that answered, "chat@8"
# Commands at a time, below what a client's pool of connections holds: a burst waits its turn
# instead of finding Redis "away".
_AT_A_TIME = 16
_log = get_logger("plinth.gateway")


@dataclass(frozen=True)
class Choice:
    """The revision of one request. canary, role: what it counts for while a canary is on.
    otherwise: the revision that answers where this one can't begin to."""

    model: ServedModel
    canary: str = ""
    role: str = ""
    otherwise: ServedModel | None = None


class Revisions:
    """Chooses and books. One per process."""

    def __init__(self, catalogue: Catalogue, canaries: Canaries) -> None:
        self._catalogue = catalogue
        self._canaries = canaries
        self._booking: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    async def choose(self, name: str, principal: Principal, user: str = "") -> Choice:
        """NotFound: no such model. Redis is asked only while shards of a canary are up."""
        stable, canary = await self._catalogue.revisions(name)
        if canary is None:
            return Choice(stable)
        who = f"{principal.tenant}\0{user}" if user else ""
        try:
            async with self._turns:
                answer = answer_key(principal.tenant, current_request_id())
                chosen = await self._canaries.choose(name, canary.artifact, who, answer)
        except Unavailable as error:
            _log.warning("no share for the canary while Redis is away", reason=error.message)
            return Choice(stable)
        if chosen is None:
            return Choice(stable)
        id, role = chosen
        if role == "stable":
            return Choice(stable, id, role)
        return Choice(canary, id, role, stable)

    def book(
        self,
        choice: Choice,
        principal: Principal,
        outcome: str,
        *,
        tokens: int = 0,
        ttft_s: float | None = None,
    ) -> None:
        """Counts a request at once, and in the background for its canary; never waits."""
        labels = (choice.model.name, choice.model.artifact)
        metrics.REVISION_REQUESTS.labels(*labels, outcome).inc()
        metrics.REVISION_TOKENS.labels(*labels).inc(tokens)
        if ttft_s is not None:
            metrics.REVISION_TTFT.labels(*labels).observe(ttft_s)
        if not choice.canary:
            return
        answer = answer_key(principal.tenant, current_request_id())
        task = asyncio.create_task(self._settle(choice, outcome, tokens, ttft_s, answer))
        self._booking.add(task)
        task.add_done_callback(self._booking.discard)

    async def drain(self) -> None:
        """Waits for what is still being booked."""
        await asyncio.gather(*self._booking)

    async def _settle(
        self, choice: Choice, outcome: str, tokens: int, ttft_s: float | None, answer: str
    ) -> None:
        try:
            async with self._turns:
                await self._canaries.settle(
                    choice.model.name,
                    choice.canary,
                    choice.role,
                    outcome=outcome,
                    tokens=tokens,
                    ttft_s=ttft_s,
                    answer=answer,
                )
        except Unavailable as error:
            _log.warning("a request was not counted for its canary", reason=error.message)


def at_fault(error: PlinthError) -> bool:
    """Whether the revision, and not the request, is to blame."""
    return error.http >= 500 or isinstance(error, ResourceExhausted)


def falls_back(error: PlinthError) -> bool:
    """Whether the stable revision is to answer what the canary could not begin to. That includes
    what the canary refuses: it may suit the stable one, whose context may be longer. A request that
    shards died under goes nowhere else."""
    return not isinstance(error, DeadlineExceeded) and error.reason != SHARDS_DIED
