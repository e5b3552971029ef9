"""Quotas of several gateways on one real Redis: never more than the limit, every token booked once,
whatever becomes of their connections."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from cut_connections import CuttingRelay
from patience import PATIENCE_S
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.gateway.quotas import account as quota_account
from plinth.gateway.quotas.account import Account, RateLimited
from plinth.gateway.quotas.ledger import Holding, QuotaLedger
from plinth.gateway.quotas.tenants import LEASE_S, Quotas
from plinth.shared import redis_keys
from plinth.shared.connection import connect

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


class FakeClock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@asynccontextmanager
async def gateways(
    url: str, count: int, *, settle_s: float = 0.05, lease_s: float = 60.0, **limits: int
) -> AsyncIterator[list[Quotas]]:
    """So many Quotas, each with a client of its own, as processes would have them."""
    async with AsyncExitStack() as ending:
        made = []
        for _ in range(count):
            redis = connect(url)
            ending.push_async_callback(redis.aclose)
            quotas = Quotas(
                redis,
                **{"concurrent": 0, "tokens_per_minute": 0, **limits},
                settle_s=settle_s,
                lease_s=lease_s,
            )
            quotas.open()
            ending.push_async_callback(quotas.close)
            made.append(quotas)
        yield made


async def booked(redis: Redis, tenant: str = "acme") -> int:
    return int(await redis.hget(redis_keys.quota(tenant), "booked") or 0)  # type: ignore[misc]


async def leased(redis: Redis, tenant: str = "acme") -> list[tuple[int, int]]:
    """(slots, tokens) of each gateway."""
    fields: dict[bytes, bytes] = await redis.hgetall(redis_keys.quota(tenant))  # type: ignore[misc]
    held = [raw.split(b"|") for name, raw in fields.items() if name.startswith(b"p:")]
    return [(int(one[1]), int(one[3])) for one in held]


async def used(redis: Redis, tenant: str = "acme") -> int:
    """Requests that run, as gateways last said."""
    fields: dict[bytes, bytes] = await redis.hgetall(redis_keys.quota(tenant))  # type: ignore[misc]
    return sum(int(raw.split(b"|")[2]) for name, raw in fields.items() if name.startswith(b"p:"))


async def test_requests_at_a_time_hold_over_gateways(
    redis_server: str, redis_client: Redis
) -> None:
    async with gateways(redis_server, 2, concurrent=2) as (here, there), AsyncExitStack() as second:
        async with here.admitted("acme"):
            await second.enter_async_context(there.admitted("acme"))
            for quotas in (here, there):
                with pytest.raises(RateLimited) as caught:
                    async with quotas.admitted("acme"):
                        raise AssertionError
                assert caught.value.retry_after_s == 1
            async with here.admitted("another"):
                pass
        async with asyncio.timeout(PATIENCE_S):  # what was freed here is had there
            while True:
                with suppress(RateLimited):
                    async with there.admitted("acme"):
                        break


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
async def test_no_slot_is_stranded(redis_server: str, redis_client: Redis, limit: int) -> None:
    """Whatever one gateway held idle, another gets to the last slot, without one refusal."""
    async with gateways(redis_server, 2, concurrent=limit) as (here, there):
        async with AsyncExitStack() as many:
            for _ in range(limit):
                await many.enter_async_context(here.admitted("acme"))
        async with AsyncExitStack() as many:
            async with asyncio.timeout(PATIENCE_S):  # until Redis knows that none runs
                while await used(redis_client):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for _ in range(limit):
                await many.enter_async_context(there.admitted("acme"))


@pytest.mark.parametrize("seed", range(3))
async def test_limits_hold_and_tokens_are_booked_once_through_cut_connections(
    redis_server: str, redis_client: Redis, seed: int
) -> None:
    limit, count, rounds, crowd = 7, 3, 15, 25
    rng = random.Random(seed)
    running = most = spent = let_in = refused = 0

    async def ask(quotas: Quotas, gives_up: bool, prompt: int, made: int, steps: int) -> None:
        nonlocal running, most, spent, let_in, refused
        try:
            async with asyncio.timeout(0 if gives_up else PATIENCE_S):
                async with quotas.admitted("acme") as admission:
                    running += 1
                    most = max(most, running)
                    let_in += 1
                    try:
                        await admission.charge(prompt)
                        spent += prompt
                        for _ in range(steps):
                            await asyncio.sleep(0)
                            admission.spend(made)
                            spent += made
                        if made % 3 == 0:  # what was charged for nothing
                            admission.spend(-prompt)
                            spent -= prompt
                    finally:
                        running -= 1
        except RateLimited:
            refused += 1
        except TimeoutError:
            pass

    async with CuttingRelay(redis_server) as relay:
        async with gateways(
            relay.url, count, settle_s=0.01, concurrent=limit, tokens_per_minute=10**9
        ) as made:
            for _ in range(rounds):
                # Fewer than a client tries again: Redis is never away.
                relay.lose = rng.randrange(3)
                asking = [
                    asyncio.create_task(
                        ask(
                            rng.choice(made),
                            rng.random() < 0.2,
                            rng.randrange(500),
                            rng.randrange(9),
                            rng.randrange(20),
                        )
                    )
                    for _ in range(crowd)
                ]
                for task in rng.sample(asking, 5):
                    asyncio.get_running_loop().call_later(rng.random() / 50, task.cancel)
                await asyncio.gather(*asking, return_exceptions=True)
                if rng.random() < 0.2:
                    relay.cut()
            assert running == 0
            relay.lose = 0
            for quotas in made:
                await quotas.settled()
            assert await booked(redis_client) == spent
        assert relay.lost > 3
    assert most <= limit and let_in > 30 and refused > 0
    assert await leased(redis_client) == [(0, 0)] * len(await leased(redis_client))


async def test_tokens_are_paid_for_before_work_and_after(
    redis_server: str, redis_client: Redis
) -> None:
    async with gateways(redis_server, 2, tokens_per_minute=600) as (here, there):
        async with here.admitted("acme") as first, here.admitted("acme") as second:
            await first.charge(800)  # into debt: the next one waits, though it was let in
            with pytest.raises(RateLimited):
                await second.charge(1)
            first.spend(100)
        await here.settled()
        assert await booked(redis_client) == 900
        for quotas in (here, there):
            with pytest.raises(RateLimited) as caught:
                async with quotas.admitted("acme"):
                    raise AssertionError
            assert caught.value.retry_after_s == pytest.approx(
                30, abs=5
            )  # 300 in debt, 10 a second


async def test_a_hang_up_while_it_asks_leaves_nothing(
    redis_server: str, redis_client: Redis
) -> None:
    """Cancelled at each moment of being let in."""
    async with gateways(redis_server, 1, concurrent=3, tokens_per_minute=1000) as (quotas,):

        async def ask() -> None:
            async with quotas.admitted("acme") as admission:
                await admission.charge(0)
                await asyncio.Event().wait()

        for steps in range(60):
            asking = asyncio.create_task(ask())
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        async with AsyncExitStack() as all_three:
            for _ in range(3):
                await all_three.enter_async_context(quotas.admitted("acme"))
    assert await leased(redis_client) == [(0, 0)]


async def test_the_lease_of_a_dead_gateway_lapses(redis_server: str, redis_client: Redis) -> None:
    redis = connect(redis_server)
    dead = Quotas(redis, concurrent=2, tokens_per_minute=0, lease_s=0.3, settle_s=0.05)
    dead.open()
    async with AsyncExitStack() as forgotten:
        for _ in range(2):
            await forgotten.enter_async_context(dead.admitted("acme"))
        assert dead._task is not None
        dead._task.cancel()  # from here on it is as if it had been killed
        async with gateways(redis_server, 1, concurrent=2) as (other,), asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(RateLimited):
                    async with other.admitted("acme"), other.admitted("acme"):
                        break
                await asyncio.sleep(0.02)
    await redis.aclose()


async def test_while_redis_is_away_a_gateway_decides_alone_and_books_later(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis")
    url = server.start()
    redis = connect(url)
    try:
        async with gateways(url, 1, concurrent=1, tokens_per_minute=1000) as (quotas,):
            server.stop()
            async with quotas.admitted("acme") as admission:
                await admission.charge(10)
                with pytest.raises(RateLimited):
                    async with quotas.admitted("acme"):
                        raise AssertionError
            async with quotas.admitted("acme") as admission:
                await admission.charge(5000)
            with pytest.raises(RateLimited):  # its own bucket is in debt
                async with quotas.admitted("acme"):
                    raise AssertionError
            server.start()
            async with asyncio.timeout(PATIENCE_S):
                while await booked(redis) != 5010:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    finally:
        await redis.aclose()
        server.stop()


@pytest.mark.parametrize(
    ("per_second", "debt"), [(0, 0), (90, 0), (100, 0), (101, 0), (200, 174_000)]
)
async def test_what_was_refilled_while_redis_was_away_is_not_owed_to_it(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch, per_second: int, debt: int
) -> None:
    """Half an hour without Redis at 100 tokens a second: whoever kept to that goes on, and is in
    debt for what is beyond it."""
    seconds = 30 * 60
    clock = FakeClock()
    monkeypatch.setattr(quota_account, "time", clock)
    ledger = QuotaLedger(
        redis_client, "here", concurrent=0, tokens_per_minute=6000, lease_s=LEASE_S
    )
    account = Account("acme", 0, 6000)
    key = redis_keys.quota("acme")

    async def exchange() -> None:
        (answer,) = await ledger.exchange([account.exchange(clock.now)])
        assert isinstance(answer, Holding)
        account.answered(answer, LEASE_S)

    await exchange()
    account.exchange(clock.now)  # this one gets no answer
    account.unanswered()
    for _ in range(seconds):
        clock.now += 1
        account.spend(per_second)
    at = int(await redis_client.hget(key, "at"))  # type: ignore[misc, arg-type]
    await redis_client.hset(key, "at", str(at - seconds * 1000))  # type: ignore[misc]
    for _ in range(2):  # the one from before, then what was spent meanwhile
        await exchange()
    level = float(await redis_client.hget(key, "level"))  # type: ignore[misc, arg-type]
    assert await booked(redis_client) == per_second * seconds
    assert max(0, -level) == pytest.approx(debt, abs=300)
    clock.now += 1
    account.spend(50)  # from here on it is as before: all of it is owed
    await exchange()
    after = float(await redis_client.hget(key, "level"))  # type: ignore[misc, arg-type]
    assert after == pytest.approx(min(6000, level + 50) - 50, abs=60)


async def test_a_clock_that_is_set_back_takes_no_tokens_and_lengthens_no_lease(
    redis_server: str, redis_client: Redis
) -> None:
    """Of the server: by NTP, or since a replica with another clock took over."""
    key, hour = redis_keys.quota("acme"), 3_600_000
    limits = {"concurrent": 2, "tokens_per_minute": 6000}
    async with gateways(redis_server, 1, **limits) as (quotas,), quotas.admitted("acme"):
        pass
    ledger = {k.decode(): v.decode() for k, v in (await redis_client.hgetall(key)).items()}  # type: ignore[misc]
    now = int(ledger["at"])
    then = {"at": str(now + hour), "hungry": f"{now + hour}|dead"}
    then["p:dead"] = f"3|1|1|100|0|{now + hour + 10_000}"  # lapses in ten seconds
    await redis_client.hset(key, mapping=then)  # type: ignore[misc]
    async with gateways(redis_server, 1, **limits) as (quotas,), quotas.admitted("acme") as one:
        await one.charge(1)
        await quotas.settled()
        raw = await redis_client.hgetall(key)  # type: ignore[misc]
        assert float(raw[b"level"]) > 5000
        assert b"hungry" not in raw
        until = int(raw[b"p:dead"].split(b"|")[-1])
        assert until - int(raw[b"at"]) <= 10_000


async def test_one_damaged_ledger_stops_no_other(redis_server: str, redis_client: Redis) -> None:
    await redis_client.set(redis_keys.quota("broken"), "no hash")
    async with gateways(redis_server, 1, concurrent=1) as (quotas,):
        async with quotas.admitted("broken"), quotas.admitted("acme"):
            for tenant in ("broken", "acme"):
                with pytest.raises(RateLimited):
                    async with quotas.admitted(tenant):
                        raise AssertionError
        assert await leased(redis_client)


async def test_a_request_within_its_lease_asks_nobody(
    redis_server: str, redis_client: Redis
) -> None:
    async with gateways(
        redis_server, 1, settle_s=PATIENCE_S, concurrent=100, tokens_per_minute=10**6
    ) as (quotas,):
        async with quotas.admitted("acme") as admission:
            await admission.charge(1)
        before = (await redis_client.info("stats"))["total_commands_processed"]
        for _ in range(200):
            async with quotas.admitted("acme") as admission:
                await admission.charge(1)
        after = (await redis_client.info("stats"))["total_commands_processed"]
        assert after - before < 10


async def test_tokens_are_booked_once_though_redis_counts_as_away_between(
    redis_server: str, redis_client: Redis
) -> None:
    """More answers get lost than a client asks for again: the gateway sends the same once more."""
    async with CuttingRelay(redis_server) as relay:
        async with gateways(relay.url, 1, settle_s=0.01, tokens_per_minute=10**9) as (quotas,):
            for round_ in range(2):
                async with quotas.admitted("acme") as admission:
                    relay.lose = 6
                    admission.spend(7)
                    async with asyncio.timeout(PATIENCE_S):
                        while relay.lose:  # noqa: ASYNC110
                            await asyncio.sleep(0.005)
                    admission.spend(5)
                async with asyncio.timeout(PATIENCE_S):
                    while await booked(redis_client) < 12 * (round_ + 1):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            assert relay.lost == 12
        assert await booked(redis_client) == 24


def test_what_is_being_given_back_is_not_used_meanwhile() -> None:
    """From the moment on in which it is said: Redis may have given it to another gateway."""
    account = Account("acme", 10, 0)
    now = time.monotonic()
    account.exchange(now)
    account.answered(Holding(5, 0, 0, 0, 0, 0, 0.0, True), 60.0)
    assert account.has_room(1)
    assert account.exchange(now).keep_slots == 0
    assert not account.has_room(1)
