"""A request for every public call, and what comes of it: for who made what it names, and for a key
of another tenant. Rows are in the order in which they can be called, each one using what those
before it made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from gateway_stages import Stack
from plinth.shared.queue import Queue
from plinth.shared.store import ArtifactStore
from plinth.v1 import (
    artifacts_pb2,
    chat_pb2,
    deployments_pb2,
    generation_pb2,
    jobs_pb2,
    keys_pb2,
    models_pb2,
    operations_pb2,
    preferences_pb2,
    rewards_pb2,
    runs_pb2,
    tokenization_pb2,
)

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


_KEYS = [
    Call(
        "KeyService.CreateKey",
        lambda _, who: keys_pb2.CreateKeyRequest(
            spec=keys_pb2.KeySpec(tenant=who, scopes=["jobs"])
        ),
        note=kept("key", lambda answer: answer.key.name),
    ),
    Call("KeyService.GetKey", lambda world, _: keys_pb2.GetKeyRequest(name=world["key"])),
    Call("KeyService.ListKeys", lambda *_: keys_pb2.ListKeysRequest()),
    Call(
        "KeyService.UpdateKey",
        lambda world, who: keys_pb2.UpdateKeyRequest(
            key=keys_pb2.Key(name=world["key"], spec=keys_pb2.KeySpec(label=who))
        ),
    ),
    Call("KeyService.RevokeKey", lambda world, _: keys_pb2.RevokeKeyRequest(name=world["key"])),
    # An administrator of any tenant manages all of them: the first to delete it does.
    Call(
        "KeyService.DeleteKey",
        lambda world, _: keys_pb2.DeleteKeyRequest(name=world["key"]),
        outcome="KEY_NOT_FOUND",
    ),
]

_OPERATIONS = [
    Call("OperationsService.GetStatus", lambda *_: operations_pb2.GetStatusRequest()),
    Call(
        "OperationsService.GetQueue",
        lambda *_: operations_pb2.GetQueueRequest(name="queues/q"),
        before=World.buried,
    ),
    Call("OperationsService.ListQueues", lambda *_: operations_pb2.ListQueuesRequest()),
    Call(
        "OperationsService.GetQueueItem",
        lambda _, who: operations_pb2.GetQueueItemRequest(name=f"queues/q/items/of-{who}"),
    ),
    Call(
        "OperationsService.ListDeadLetters",
        lambda *_: operations_pb2.ListDeadLettersRequest(parent="queues/-"),
    ),
    Call(
        "OperationsService.DeleteDeadLetter",
        lambda *_: operations_pb2.DeleteDeadLetterRequest(name="queues/q/deadLetters/of-rival"),
        outcome="DEAD_LETTER_NOT_FOUND",
    ),
    Call(
        "OperationsService.RequeueDeadLetter",
        lambda *_: operations_pb2.RequeueDeadLetterRequest(name="queues/q/deadLetters/of-acme"),
        outcome="DEAD_LETTER_NOT_FOUND",
    ),
]
