"""One tenant's quota as one gateway holds it: what runs, what is leased, what is not settled yet.

Plain arithmetic without waiting: whatever it decides is true until the caller awaits something.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from plinth.gateway.quotas.ledger import Exchange, Holding
from plinth.shared.errors import ResourceExhausted

_LAPSE_SHARE = 0.8  # of a lease, from when it was asked for: a clock may run a little faster here
IDLE_S = 5.0  # without a request until everything is given back
_CHUNK = 16  # of a minute's tokens are leased at a time, at the most


class RateLimited(ResourceExhausted):
    """A tenant has used up what it may. Nobody else can answer it either."""


class Account:
    """A tenant at this gateway. limit: requests at a time; rate: tokens per minute; 0 is none."""

    def __init__(self, tenant: str, limit: int, rate: int) -> None:
        self.tenant = tenant
        self._limit, self._rate = limit, rate
        self._running = 0
        self._peak = 0  # most that ran since the last exchange
        self._slots = 0  # leased
        self._tokens = 0  # leased, less what was spent before the last exchange
        self._spent = 0  # since then
        self._leased_until = 0.0
        self._number = 0  # of the last exchange that was made
        self._unanswered: Exchange | None = None
        self._asked_at = 0.0  # when that was first sent
        self._said = Holding(0, 0, 0, 0, 0, 0, 0.0, False)
        # Since an exchange was not answered, until the next one is made: what is spent meanwhile is
        # within this gateway's own bucket, and refilled as that is.
        self.alone = False
        self._waiting = [0, 0]  # for tokens alone; for a slot as well
        self._settlement: asyncio.Future[bool] | None = None  # one that has not begun
        self._running_settlement: asyncio.Future[bool] | None = None
        self._used_at = time.monotonic()
        self._level, self._level_at = float(rate), self._used_at  # the bucket, if alone

    # -- requests ------------------------------------------------------------------------------

    def touch(self) -> None:
        """A request has come."""
        self._used_at = time.monotonic()

    def has_room(self, slots: int) -> bool:
        """Whether a request with so many slots, 0 or 1, can go on with what is leased."""
        leased = time.monotonic() < self._leased_until
        if self._limit and slots and not (leased and self._running < self._slots):
            return False
        return not self._rate or (leased and self._tokens > self._spent)

    def enter(self) -> None:
        """A request is let in."""
        self._running += 1
        self._peak = max(self._peak, self._running)
        self._used_at = time.monotonic()

    def leave(self) -> bool:
        """It has ended. True: its slot is wanted elsewhere."""
        self._running -= 1
        self._used_at = time.monotonic()
        return self._said.scarce

    def spend(self, tokens: int) -> None:
        """Tokens that were used; negative ones are given back."""
        self._level = self._level_now() - tokens
        self._level_at = self._used_at = time.monotonic()
        self._spent += tokens

    def check_alone(self, slots: int) -> None:
        """Decides without Redis. RateLimited."""
        if self._limit and slots and self._running >= self._limit:
            raise self._limited("requests", 1.0)
        if self._rate and (level := self._level_now()) <= 0:
            raise self._limited("tokens", (1 - level) * 60 / self._rate)

    def refusal(self, slots: int) -> RateLimited | None:
        """What the last settlement left a request without; None where there is, or may be, room."""
        if self.has_room(slots):
            return None
        if self._limit and slots and self._running >= self._slots and self._said.unmet_slots:
            return self._limited("requests", 1.0)
        if self._rate and self._tokens <= self._spent and self._said.unmet_tokens:
            return self._limited("tokens", self._said.wait_s)
        return None

    def idle_elsewhere(self, slots: int) -> bool:
        """Whether other gateways can give back what it was left without."""
        if slots and self._said.unmet_slots:
            return self._said.idle_slots > 0
        return self._said.idle_tokens > 0

    @contextmanager
    def waiting(self, slots: int) -> Iterator[None]:
        """While a request waits for a settlement."""
        self._waiting[slots] += 1
        try:
            yield
        finally:
            self._waiting[slots] -= 1

    # -- settlements ---------------------------------------------------------------------------

    @property
    def unsettled(self) -> bool:
        """Whether anything that was spent may not be booked."""
        return self._spent != 0 or self._unanswered is not None

    @property
    def must_return(self) -> bool:
        """Whether another gateway lacks what lies idle here."""
        return self._said.scarce and self._idle

    @property
    def asked(self) -> bool:
        """Whether somebody waits for a settlement that has not begun."""
        return self._settlement is not None

    def next_settlement(self) -> asyncio.Future[bool]:
        """One that has not begun: True when it is over, False if Redis does not answer."""
        if self._settlement is None:
            self._settlement = asyncio.get_running_loop().create_future()
        return self._settlement

    def due(self, now: float, settle_s: float) -> bool:
        """Whether it is time for an exchange."""
        if self.asked or self._unanswered is not None or self.must_return:
            return True
        age = now - self._asked_at
        # Who holds anything hears within that time that somebody else is in want of it.
        return age >= settle_s and bool(self._spent or self._running or self._idle)

    def forgettable(self, now: float) -> bool:
        """Whether nothing would be lost with it; a minute refills a bucket that is not in debt."""
        return (
            not (self._running or self._slots or self._tokens > 0 or self.unsettled)
            and not self.asked
            and now - self._used_at > 60
            and self._level_now() >= 0
        )

    def exchange(self, now: float, *, leaving: bool = False) -> Exchange:
        """What to send. The last one again until it is answered; then a new one, from whose making
        on only what it keeps is still held here."""
        self._running_settlement = None
        if self._unanswered is not None:
            return self._unanswered
        self._running_settlement, self._settlement = self._settlement, None
        slots = self._slots if now < self._leased_until else 0
        left = self._tokens - self._spent if now < self._leased_until else 0
        waiting = self._running + self._waiting[1]
        need_tokens = int(left <= 0 and any(self._waiting))
        if leaving or self._said.scarce or self._unused(now):
            slots, want_slots = min(slots, waiting), 0
            keep_tokens = max(0, left) if any(self._waiting) else 0
            want_tokens = need_tokens
        else:
            slots = min(slots, self._target())
            want_slots = self._target() - slots
            keep_tokens = max(0, left)
            want_tokens = max(need_tokens, self._rate // _CHUNK - keep_tokens)
        need_slots = max(0, waiting - max(slots, self._running))
        self._number += 1
        self._unanswered = Exchange(
            self.tenant,
            self._number,
            self._spent,
            min(self._spent, self._lacking()) if self.alone else self._spent,
            self._running,
            slots,
            need_slots if self._limit else 0,
            max(need_slots, want_slots) if self._limit else 0,
            keep_tokens,
            need_tokens if self._rate else 0,
            want_tokens if self._rate else 0,
        )
        self._slots, self._tokens, self._spent = slots, keep_tokens, 0
        self.alone = False
        self._peak = self._running
        self._asked_at = now
        return self._unanswered

    def answered(self, holding: Holding, lease_s: float) -> None:
        """The exchange was applied. A lease counts from when it was asked for."""
        self._said = holding
        self._slots, self._tokens = holding.slots, holding.tokens
        self._leased_until = self._asked_at + _LAPSE_SHARE * lease_s
        self._unanswered = None
        self._end_settlement(True)

    def unanswered(self) -> None:
        """Nobody knows whether it was: it goes out again as it is."""
        self.alone = True
        self._end_settlement(False)
        self._running_settlement, self._settlement = self._settlement, None
        self._end_settlement(False)

    # -- inside --------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        """Whether something is leased that nobody here uses or waits for."""
        return self._slots > self._running + self._waiting[1] or (
            self._tokens > max(0, self._spent) and not any(self._waiting)
        )

    def _unused(self, now: float) -> bool:
        return not any(self._waiting) and now - self._used_at > IDLE_S

    def _end_settlement(self, answered: bool) -> None:
        if self._running_settlement is not None and not self._running_settlement.done():
            self._running_settlement.set_result(answered)
        self._running_settlement = None

    def _target(self) -> int:
        """Slots to hold where enough are left: what ran lately, and some more."""
        most = max(self._peak, self._running + self._waiting[1])
        return min(self._limit, most + max(1, most // 4))

    def _level_now(self) -> float:
        since = time.monotonic() - self._level_at
        return min(float(self._rate), self._level + since * self._rate / 60)

    def _lacking(self) -> int:
        """Tokens that this gateway's own bucket has not been refilled by yet."""
        return math.ceil(self._rate - self._level_now())

    def _limited(self, what: str, wait_s: float) -> RateLimited:
        limit = (
            f"{self._limit} requests at a time"
            if what == "requests"
            else f"{self._rate} tokens per minute"
        )
        return RateLimited(
            f"Rate limit reached for tenant {self.tenant!r}: {limit}. "
            f"Try again in {math.ceil(wait_s)} s.",
            reason="RATE_LIMIT_EXCEEDED",
            retry_after_s=wait_s,
            metadata={"subject": f"tenant:{self.tenant}"},
        )
