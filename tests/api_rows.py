"""Rows of calls: a request, and what comes of it for who made what it names and for a key of
another tenant. They are in the order in which they can be called, each one using what those before
it made (`api_calls.py` has all of them)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from gateway_stages import Stack
from plinth.shared.queue import Queue
from plinth.shared.store import ArtifactStore

OTHER = "OTHER_TENANT"


@dataclass
class World:
    """What the rows find: the stack, a model on its store, and names that they noted."""

    stack: Stack
    redis: Redis
    noted: dict[str, Any] = field(default_factory=dict)

    @classmethod
    async def made(cls, stack: Stack, redis: Redis, folder: Path) -> World:
        world = cls(stack, redis)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        ArtifactStore(stack.settings.store()).publish("m", "model", folder / "model")
        return world

    def __getitem__(self, name: str) -> Any:
        return self.noted[name]

    async def buried(self) -> None:
        """A dead letter each, for those who take it."""
        queue = Queue(self.redis, "q")
        for id in ("of-acme", "of-rival"):
            await queue.add(id, b"work")
            lease = await queue.claim("consumer", wait_s=1)
            assert lease is not None
            await queue.fail(lease, "no use", retry=False)


@dataclass(frozen=True)
class Call:
    """request: of "acme" or "rival", which may name things of their own. other: the reason why
    another tenant's key is refused, outcome: why the owner's is; empty: it is answered. note: keeps
    something of the owner's answer. before: makes what the call needs. until_not: a reason that
    passes by itself."""

    method: str
    request: Callable[[World, str], Any]
    other: str = ""
    outcome: str = ""
    note: Callable[[World, Any], None] | None = None
    before: Callable[[World], Awaitable[None]] | None = None
    until_not: str = "-"


def kept(name: str, read: Callable[[Any], Any]) -> Callable[[World, Any], None]:
    """Notes what `read` finds in the answer."""

    def note(world: World, answer: Any) -> None:
        world.noted[name] = read(answer)

    return note
