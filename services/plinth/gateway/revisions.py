"""Which revision of a model answers a request, and what came of it.

A request belongs to one revision from its tokenizer to its last token; only before the first
piece may a request whose canary has failed go to the stable revision instead. Redis keeps the
canary's share over all gateways; while it is away, or full, the stable revision answers.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from contextvars import Context
from dataclasses import dataclass, field

from plinth.gateway import metrics
from plinth.gateway.catalogue import Catalogue, ServedModel
from plinth.gateway.quota_account import RateLimited
from plinth.gateway.retry_budget import SHARDS_DIED
from plinth.shared.canary import Canaries, answer_key
from plinth.shared.errors import (
    DeadlineExceeded,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.identity import Principal, current_request_id
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

MODEL_HEADER = "x-plinth-model"  # the revision that answered, "chat@8"
MAX_UNBOOKED = 10_000  # requests whose outcome Redis has not been told yet
AT_A_TIME = 32  # of them on their way
RETRY_S = 0.5
AGAIN_S = 30.0  # how long one is sent again: well within what Redis knows it by
DRAIN_S = 2.0
_log = get_logger("plinth.gateway")


@dataclass(frozen=True)
class Choice:
    """The revision of one request. canary, role: what it counts for while a canary is on.
    otherwise: the revision that answers where this one can't begin to."""

    model: ServedModel
    canary: str = ""
    role: str = ""
    otherwise: ServedModel | None = None


@dataclass(frozen=True)
class _Booking:
    """What came of one request, to be counted once however often it is sent."""

    choice: Choice
    outcome: str
    tokens: int
    ttft_s: float | None
    answer: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: float = field(default_factory=time.monotonic)


class Revisions:
    """Chooses and books. One per process."""

    def __init__(self, catalogue: Catalogue, canaries: Canaries) -> None:
        self._catalogue = catalogue
        self._canaries = canaries
        self._unbooked: deque[_Booking] = deque()
        self._booking: asyncio.Task[None] | None = None

    async def choose(self, name: str, principal: Principal, user: str = "") -> Choice:
        """NotFound: no such model. Redis is asked only while shards of a canary are up."""
        stable, canary = await self._catalogue.revisions(name)
        if canary is None:
            return Choice(stable)
        who = f"{principal.tenant}\0{user}" if user else ""
        try:
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
        self._unbooked.append(_Booking(choice, outcome, tokens, ttft_s, answer))
        if len(self._unbooked) > MAX_UNBOOKED:
            self._unbooked.popleft()
        if self._booking is None or self._booking.done():
            # In a context of its own: it works for no request.
            self._booking = asyncio.create_task(self._book_all(), context=Context())

    async def drain(self) -> None:
        """Waits for what is still being booked, if Redis answers now."""
        if self._booking is not None:
            await asyncio.wait({self._booking}, timeout=DRAIN_S)
            await cancel_and_wait(self._booking)

    async def _book_all(self) -> None:
        while self._unbooked:
            batch = [self._unbooked.popleft() for _ in range(min(len(self._unbooked), AT_A_TIME))]
            results = await asyncio.gather(*map(self._book, batch), return_exceptions=True)
            now = time.monotonic()
            again = False
            for one, error in zip(batch, results, strict=True):
                if isinstance(error, Unavailable) and now - one.at < AGAIN_S:
                    self._unbooked.append(one)
                    again = True
                elif isinstance(error, Exception):
                    _log.warning("a request was not counted for its canary", reason=str(error))
            if again:
                await asyncio.sleep(RETRY_S)

    async def _book(self, one: _Booking) -> None:
        await self._canaries.settle(
            one.choice.model.name,
            one.choice.canary,
            one.choice.role,
            outcome=one.outcome,
            tokens=one.tokens,
            ttft_s=one.ttft_s,
            answer=one.answer,
            once=one.id,
        )


def at_fault(error: PlinthError) -> bool:
    """Whether the revision, and not the request, is to blame."""
    return error.http >= 500 or isinstance(error, ResourceExhausted)


def falls_back(error: PlinthError) -> bool:
    """Whether the stable revision is to answer what the canary could not begin to. That includes
    what the canary refuses: it may suit the stable one, whose context may be longer. A request that
    shards died under goes nowhere else, nor does one whose tenant has used up its quota."""
    return not isinstance(error, DeadlineExceeded | RateLimited) and error.reason != SHARDS_DIED
