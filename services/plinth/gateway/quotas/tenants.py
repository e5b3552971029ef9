"""Per-tenant quotas: requests at a time, and tokens per minute.

They hold over all gateways together. A gateway leases slots and tokens of a tenant out of the
tenant's ledger in Redis (`ledger.py`), lets requests in against what it holds without asking
anybody, and settles beside them: one pipeline for all tenants, sent again under the same numbers
until it is answered. What it leases gets smaller as less is left, and what lies idle is given back,
at once where another gateway is in want; so nobody is refused for what nobody uses. The lease of a
gateway that died lapses. While Redis is away a gateway decides alone, by the same limits.

A minute's tokens are a bucket that refills steadily. A request is let in while anything is in it,
pays for its prompt before work on it begins, and for its answer as it is made; the bucket may go
into debt, which later requests wait out.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context

from redis.asyncio import Redis

from plinth.gateway.quotas.account import Account
from plinth.gateway.quotas.ledger import Exchange, QuotaLedger
from plinth.shared.errors import PlinthError, Unavailable
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.gateway")

LEASE_S = 15.0  # how long a dead gateway's slots stay taken
SETTLE_S = 0.5  # between settlements of one tenant
_ANSWER_S = 2.0  # what a pipeline may take; Redis counts as away beyond it
_AWAY_S = 1.0  # for how long it does
_IDLE_WAITS = 4  # settlements that a request waits for what other gateways hold idle


class Admission:
    """What one request that was let in pays with."""

    def __init__(self, quotas: Quotas, account: Account | None) -> None:
        self._quotas = quotas
        self._account = account

    async def charge(self, tokens: int) -> None:
        """Takes what is to be paid before work begins. RateLimited when the tenant's tokens were
        used up meanwhile."""
        if self._account is not None:
            await self._quotas.wait_for_tokens(self._account)
            self._account.spend(tokens)

    def spend(self, tokens: int) -> None:
        """Takes what was used already. Negative: gives back what was charged for nothing."""
        if self._account is not None:
            self._account.spend(tokens)


class Quotas:
    """Limits of 0 are none; without any, nothing is counted and Redis is not asked.

    One per process. `open` it before the first request, `close` it after the last one.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        concurrent: int,
        tokens_per_minute: int,
        lease_s: float = LEASE_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._limits = (concurrent, tokens_per_minute)
        self._limited = any(self._limits)
        self._lease_s, self._settle_s = lease_s, settle_s
        self._ledger = QuotaLedger(
            redis,
            uuid.uuid4().hex,
            concurrent=concurrent,
            tokens_per_minute=tokens_per_minute,
            lease_s=lease_s,
        )
        self._accounts: dict[str, Account] = {}
        self._wanted = asyncio.Event()  # somebody waits for a settlement
        self._away_until = 0.0
        self._away_told = False
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begins to settle."""
        if self._limited:
            # In a context of its own: it works for no request.
            self._task = asyncio.create_task(self._settle_for_ever(), context=Context())

    async def close(self) -> None:
        """Books what is left and gives everything back, if Redis answers now."""
        if self._task is None:
            return
        await cancel_and_wait(self._task)
        self._task = None
        try:
            # The first round may only repeat what was on its way.
            for _ in range(2):
                await self._round(list(self._accounts.values()), leaving=True)
        except Unavailable as error:
            _log.warning("quotas were not settled at the end", reason=error.message)
        for account in self._accounts.values():
            account.unanswered()  # whoever still waits decides alone

    @asynccontextmanager
    async def admitted(self, tenant: str) -> AsyncIterator[Admission]:
        """A request of `tenant`, which is one of its requests at a time until the block ends.

        RateLimited, with a time to wait, when the tenant has used up what it has.
        """
        if not self._limited:
            yield Admission(self, None)
            return
        account = self._account(tenant)
        await self._wait_for(account, slots=1)
        account.enter()  # nothing is awaited since there was room, nor until the block begins
        try:
            yield Admission(self, account)
        finally:
            if account.leave():
                self._wanted.set()

    async def check(self, tenant: str) -> None:
        """RateLimited where a request of `tenant` would not be let in now. Takes nothing."""
        if self._limited:
            await self._wait_for(self._account(tenant), slots=1)

    def background(self, tenant: str) -> Admission:
        """Of work that is none of the tenant's requests at a time, and pays with tokens alone."""
        return Admission(self, self._account(tenant) if self._limited else None)

    async def wait_for_tokens(self, account: Account) -> None:
        """Returns while the tenant has tokens. RateLimited."""
        await self._wait_for(account, slots=0)

    async def settled(self) -> None:
        """Returns when everything that was spent until now is booked. Unavailable."""
        for account in list(self._accounts.values()):
            while account.unsettled:
                if not await self._settlement(account):
                    raise Unavailable("Redis is away; quotas are settled when it is back")

    # -- one request ---------------------------------------------------------------------------

    def _account(self, tenant: str) -> Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(tenant, *self._limits)
        account.touch()
        return account

    async def _wait_for(self, account: Account, slots: int) -> None:
        """Returns when a request may go on: with `slots` of 1 if there is one, with 0 if there are
        tokens alone. Whoever asks takes it before anything else runs."""
        idle_waits = 0
        while not account.has_room(slots):
            with account.waiting(slots):
                answered = await self._settlement(account)
            if not answered:
                account.check_alone(slots)
                return
            refusal = account.refusal(slots)
            if refusal is None:
                continue
            if not account.idle_elsewhere(slots) or idle_waits == _IDLE_WAITS:
                raise refusal
            idle_waits += 1
            await asyncio.sleep(self._settle_s / 2)  # those who hold it are told meanwhile

    async def _settlement(self, account: Account) -> bool:
        """Waits for the account's next settlement. False: Redis is away."""
        if time.monotonic() < self._away_until:
            return False
        assert self._task is not None, "Quotas must be open"
        settlement = account.next_settlement()
        self._wanted.set()
        return await asyncio.shield(settlement)

    # -- beside the requests -------------------------------------------------------------------

    async def _settle_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settle_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            now = time.monotonic()
            for account in [a for a in self._accounts.values() if a.forgettable(now)]:
                del self._accounts[account.tenant]
            due = [a for a in self._accounts.values() if a.due(now, self._settle_s)]
            if not due:
                continue
            try:
                await self._round(due)
            except Exception as error:  # noqa: BLE001 - requests go on, and it is tried again
                self._away(error, due)

    def _away(self, error: Exception, due: list[Account]) -> None:
        if not isinstance(error, Unavailable):
            _log.exception("quotas can't be settled; this gateway counts alone")
        elif not self._away_told:
            _log.warning("quotas are counted by this gateway alone", reason=error.message)
        self._away_told = True
        self._away_until = time.monotonic() + _AWAY_S
        for account in due:
            account.unanswered()

    async def _round(self, due: list[Account], *, leaving: bool = False) -> None:
        """One pipeline for all of `due`. Unavailable: to be repeated as it is."""
        now = time.monotonic()
        batch: list[Exchange] = [account.exchange(now, leaving=leaving) for account in due]
        try:
            async with asyncio.timeout(_ANSWER_S):
                answers = await self._ledger.exchange(batch)
        except TimeoutError as error:
            raise Unavailable(f"Redis did not answer within {_ANSWER_S:g} s") from error
        if self._away_told:
            self._away_told = False
            _log.info("quotas are settled with Redis again")
        for account, answer in zip(due, answers, strict=True):
            if isinstance(answer, PlinthError):
                if not account.alone:
                    _log.warning(
                        "a tenant's quota is counted by this gateway alone",
                        tenant=account.tenant,
                        reason=answer.message,
                    )
                account.unanswered()
            else:
                account.answered(answer, self._lease_s)
                if account.must_return or account.asked:
                    self._wanted.set()
