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
from dataclasses import dataclass, field, replace
from functools import partial

from plinth.gateway import metrics
from plinth.gateway.generation.catalogue import Catalogue, ServedModel
from plinth.gateway.generation.failover import Replaced
from plinth.gateway.generation.retry_budget import SHARDS_DIED
from plinth.gateway.quotas.account import RateLimited
from plinth.shared.canary import Canaries, Chosen, answer_key
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
    """The revision of one request. canary, role, cohort: what it counts for while a canary is on;
    it is to be booked whatever becomes of it, since what is not heard of again has failed.
    otherwise: the revision that answers where this one can't begin to."""

    model: ServedModel
    canary: str = ""
    role: str = ""
    otherwise: ServedModel | None = None
    cohort: int = 0

    def instead(self) -> Choice:
        """The other revision's, which this request was not drawn for: it is in no cohort."""
        assert self.otherwise is not None
        return Choice(self.otherwise, self.canary, "stable")


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
    """Chooses and books. One per process. deadline_s: the longest that a request may take."""

    def __init__(self, catalogue: Catalogue, canaries: Canaries, deadline_s: float) -> None:
        self._catalogue = catalogue
        self._canaries = canaries
        self._within_s = deadline_s + AGAIN_S
        self._unbooked: deque[_Booking] = deque()
        self._booking: asyncio.Task[None] | None = None
        self._choosing: set[asyncio.Task[Chosen | None]] = set()  # for clients that hung up

    async def choose(self, name: str, principal: Principal, user: str = "") -> Choice:
        """NotFound: no such model. Redis is asked only while shards of a canary are up."""
        stable, canary = await self._catalogue.revisions(name)
        if canary is None:
            return Choice(stable)
        who = f"{principal.tenant}\0{user}" if user else ""
        answer = answer_key(principal.tenant, current_request_id())
        choosing = asyncio.create_task(
            self._canaries.choose(name, canary.artifact, who, answer, self._within_s)
        )
        try:
            chosen = await asyncio.shield(choosing)
        except asyncio.CancelledError:
            # The client hung up meanwhile; what it is given all the same is to be booked.
            self._choosing.add(choosing)
            choosing.add_done_callback(partial(self._given_up, stable, canary, answer))
            raise
        except Unavailable as error:
            _log.warning("no share for the canary while Redis is away", reason=error.message)
            return Choice(stable)
        return _choice(stable, canary, chosen)

    def _given_up(
        self,
        stable: ServedModel,
        canary: ServedModel,
        answer: str,
        choosing: asyncio.Task[Chosen | None],
    ) -> None:
        self._choosing.discard(choosing)
        if choosing.cancelled() or choosing.exception() is not None:
            return  # nobody was given anything, or nobody can know
        self._queue(_choice(stable, canary, choosing.result()), "cancelled", answer)

    def book(
        self,
        choice: Choice,
        principal: Principal,
        outcome: str,
        *,
        tokens: int = 0,
        ttft_s: float | None = None,
    ) -> None:
        """Counts a request at once, and in the background for its canary; never waits. outcome: as
        in `Canaries.settle`. What a canary refuses is counted by `Refusals`."""
        if outcome == "refused" and choice.otherwise is not None:
            return
        answer = answer_key(principal.tenant, current_request_id()) if choice.canary else ""
        self._queue(choice, outcome, answer, tokens=tokens, ttft_s=ttft_s)
        if outcome == "refused":
            return
        labels = (choice.model.name, choice.model.artifact)
        told = "error" if outcome == "late" else outcome
        metrics.REVISION_REQUESTS.labels(*labels, told).inc()
        metrics.REVISION_TOKENS.labels(*labels).inc(tokens)
        if ttft_s is not None:
            metrics.REVISION_TTFT.labels(*labels).observe(ttft_s)

    def _queue(
        self,
        choice: Choice,
        outcome: str,
        answer: str,
        *,
        tokens: int = 0,
        ttft_s: float | None = None,
    ) -> None:
        if not choice.canary:
            return
        self._unbooked.append(_Booking(choice, outcome, tokens, ttft_s, answer))
        if len(self._unbooked) > MAX_UNBOOKED:
            self._unbooked.popleft()
        if self._booking is None or self._booking.done():
            # In a context of its own: it works for no request.
            self._booking = asyncio.create_task(self._book_all(), context=Context())

    async def drain(self) -> None:
        """Waits for what is still being booked, if Redis answers now."""
        if self._choosing:
            await asyncio.wait(self._choosing, timeout=DRAIN_S)
            await cancel_and_wait(*self._choosing)
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
            cohort=one.choice.cohort,
            once=one.id,
        )


class Refusals:
    """What a canary refused of one client's request: its failure if the stable revision answers
    that, as its users would be refused it once it took over; else it counts as not asked."""

    def __init__(self, revisions: Revisions, principal: Principal) -> None:
        self._revisions = revisions
        self._principal = principal
        self._refused: list[tuple[Choice, bool]] = []  # whether it would be to blame
        self._answered = False

    def note(self, choice: Choice, error: PlinthError) -> None:
        """What a session of `choice` ended with before it began."""
        if choice.otherwise is not None and outcome_of(error, began=False) == "refused":
            self._refused.append((choice, falls_back(error) and not isinstance(error, Replaced)))

    def answered(self) -> None:
        """The request is answered."""
        self._answered = True

    def book(self) -> None:
        """Once it is known whether it is answered."""
        for choice, to_blame in self._refused:
            outcome = "error" if self._answered and to_blame else "refused"
            self._revisions.book(replace(choice, otherwise=None), self._principal, outcome)


def _choice(stable: ServedModel, canary: ServedModel, chosen: Chosen | None) -> Choice:
    if chosen is None:
        return Choice(stable)
    if chosen.role == "stable":
        return Choice(stable, chosen.id, chosen.role, cohort=chosen.cohort)
    return Choice(canary, chosen.id, chosen.role, stable, chosen.cohort)


def at_fault(error: PlinthError) -> bool:
    """Whether the revision, and not the request, is to blame."""
    return error.http >= 500 or isinstance(error, ResourceExhausted)


def outcome_of(error: BaseException, *, began: bool) -> str:
    """What a request has come to that ended so: "error", "late" where it ran out of time before its
    answer `began`, "cancelled" by its client, or "refused" where the revision is not to blame."""
    if not isinstance(error, Exception):
        return "cancelled"
    # One counts where it is answered, the other's tenant has used up its quota.
    if isinstance(error, Replaced | RateLimited):
        return "refused"
    if isinstance(error, DeadlineExceeded) and not began:
        return "late"
    return "refused" if isinstance(error, PlinthError) and not at_fault(error) else "error"


def falls_back(error: PlinthError) -> bool:
    """Whether the stable revision is to answer what the canary could not begin to. That includes
    what the canary refuses: it may suit the stable one, whose context may be longer. A request that
    shards died under goes nowhere else, nor does one whose tenant has used up its quota."""
    return not isinstance(error, DeadlineExceeded | RateLimited) and error.reason != SHARDS_DIED
