"""Random interleavings of several consumers against a naive model in plain Python."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from plinth.shared.errors import Cancelled
from plinth.shared.queue import Lease, LeaseLost, Queue, QueueInfo

MAX_ATTEMPTS = 3


@dataclass
class Item:
    state: str = "waiting"
    attempts: int = 0
    fence: int = 0
    lapsed: bool = False
    cancelled: bool = False


@dataclass
class Model:
    """What the queue should hold, written without regard to how it does."""

    items: dict[str, Item] = field(default_factory=dict)
    last_fence: int = 0

    def holds(self, lease: Lease) -> bool:
        item = self.items[lease.id]
        return item.state == "leased" and item.fence == lease.fence

    def settle_lapsed(self) -> None:
        """What any claim does first to leases that lapsed and can't be given out again."""
        for item in self.items.values():
            if item.state == "leased" and item.lapsed:
                if item.cancelled:
                    item.state = "cancelled"
                elif item.attempts >= MAX_ATTEMPTS:
                    item.state = "dead"

    def claimable(self) -> set[str]:
        return {
            name
            for name, item in self.items.items()
            if item.state == "waiting" or (item.state == "leased" and item.lapsed)
        }

    def count(self, state: str) -> int:
        return sum(item.state == state for item in self.items.values())


class Run:
    """Drives the queue and the model with the same random steps and compares the answers."""

    def __init__(self, redis: Redis, queue: Queue, seed: int) -> None:
        self.redis, self.queue, self.rng = redis, queue, random.Random(seed)
        self.model = Model()
        self.leases: list[Lease] = []
        self.completed: dict[str, bytes] = {}

    async def add(self) -> None:
        name = f"j{self.rng.randrange(60)}"
        accepted = await self.queue.add(name, name.encode())
        assert accepted == (name not in self.model.items)
        self.model.items.setdefault(name, Item())

    async def claim(self) -> None:
        lease = await self.queue.claim(f"c{self.rng.randrange(3)}", wait_s=0)
        before = self.model.claimable()
        if lease is None:
            self.model.settle_lapsed()
            assert not self.model.claimable()
            return
        assert lease.id in before and lease.payload == lease.id.encode()
        item = self.model.items[lease.id]
        assert not item.cancelled
        # Those that lapsed earlier than this one were settled on the way to it.
        for name in before - {lease.id}:
            other = self.model.items[name]
            if other.state == "leased":
                found = await self.queue.find(name)
                assert found is not None
                may = {"cancelling": other.cancelled, "cancelled": other.cancelled, "leased": True}
                may["dead"] = other.attempts >= MAX_ATTEMPTS and not other.cancelled
                assert may[found.state]
                other.state = found.state if found.state != "cancelling" else "leased"
        assert lease.fence > self.model.last_fence
        assert lease.attempts == item.attempts + 1 <= MAX_ATTEMPTS
        self.model.last_fence = item.fence = lease.fence
        item.attempts, item.state, item.lapsed = lease.attempts, "leased", False
        self.leases.append(lease)

    async def lapse(self) -> None:
        held = [name for name, item in self.model.items.items() if item.state == "leased"]
        if held:
            name = self.rng.choice(held)
            await self.redis.zadd(
                self.queue._keys.leases, {name: self.rng.randrange(1, 99)}, xx=True
            )
            self.model.items[name].lapsed = True

    async def retry_is_due(self) -> None:
        for name, item in self.model.items.items():
            if item.state == "delayed" and self.rng.random() < 0.5:
                await self.redis.zadd(self.queue._keys.delayed, {name: 1}, xx=True)
                item.state = "waiting"

    async def cancel(self) -> None:
        name = f"j{self.rng.randrange(60)}"
        item = self.model.items.get(name)
        live = item is not None and item.state in ("waiting", "leased", "delayed")
        assert await self.queue.cancel(name) == live
        if live:
            assert item is not None
            if item.state == "leased":
                item.cancelled = True
            else:
                item.state = "cancelled"

    async def requeue(self) -> None:
        name = f"j{self.rng.randrange(60)}"
        item = self.model.items.get(name)
        dead = item is not None and item.state == "dead"
        assert await self.queue.requeue(name) == dead
        if dead:
            self.model.items[name] = Item()

    async def use_lease(self) -> None:
        if not self.leases:
            return
        lease = self.rng.choice(self.leases)
        item = self.model.items[lease.id]
        holds = self.model.holds(lease)
        action = self.rng.choice(["heartbeat", "complete", "complete", "retry", "dead", "release"])
        ends = action != "heartbeat"
        if ends:
            self.leases.remove(lease)
        try:
            await self.act(action, lease)
        except LeaseLost:
            assert not holds
            return
        except Cancelled:
            assert holds and item.cancelled and action == "heartbeat"
            item.lapsed = False
            return
        if item.state == "cancelled" and action in ("retry", "dead", "release"):
            return  # giving up what was cancelled is no error, whoever does it
        assert holds
        item.lapsed = False
        if action == "complete":
            assert lease.id not in self.completed, "completed twice"
            self.completed[lease.id] = str(lease.fence).encode()
            item.state = "completed"
        elif ends and item.cancelled:
            item.state = "cancelled"
        elif action == "retry":
            item.state = "delayed" if item.attempts < MAX_ATTEMPTS else "dead"
        elif action == "dead":
            item.state = "dead"
        elif action == "release":
            item.state, item.attempts = "waiting", item.attempts - 1

    async def act(self, action: str, lease: Lease) -> None:
        if action == "heartbeat":
            await self.queue.heartbeat(lease)
        elif action == "complete":
            await self.queue.complete(lease, str(lease.fence).encode())
        elif action == "release":
            await self.queue.release(lease)
        else:
            await self.queue.fail(lease, action, retry=action == "retry")

    async def check(self) -> None:
        model = self.model
        states = ("waiting", "leased", "delayed", "dead")
        assert await self.queue.inspect() == QueueInfo(*(model.count(state) for state in states))
        for name, result in self.completed.items():
            assert await self.queue.result(name) == result
        keys = self.queue._keys
        live = sum(model.count(state) for state in states)
        assert await self.redis.hlen(keys.payloads) == await self.redis.hlen(keys.items) == live
        # Nothing is left in the stream of what has left it.
        assert await self.redis.xlen(keys.stream) == model.count("waiting") + model.count("leased")


@pytest.mark.parametrize("seed", range(6))
async def test_random_interleavings(redis_client: Redis, seed: int) -> None:
    queue = Queue(redis_client, "model", lease_s=600, max_attempts=MAX_ATTEMPTS, backoff_s=300)
    run = Run(redis_client, queue, seed)
    steps = [
        run.add,
        run.claim,
        run.use_lease,
        run.lapse,
        run.retry_is_due,
        run.cancel,
        run.requeue,
    ]
    weights = [6, 8, 8, 2, 2, 1, 1]
    for number in range(500):
        await run.rng.choices(steps, weights)[0]()
        if number % 50 == 49:
            # A claim first, so that moves due by time are made on both sides alike.
            await run.claim()
            while run.model.claimable():
                await run.claim()
            await run.check()
    assert len(run.completed) > 15, "the run did too little to mean anything"
