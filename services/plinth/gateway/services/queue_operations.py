"""Queues and their dead letters as the public messages."""

from __future__ import annotations

from redis.asyncio import Redis

from plinth.shared.api import enums, times
from plinth.shared.api.resource_names import Pattern
from plinth.shared.dead_letters import DeadItem, DeadLetters
from plinth.shared.errors import NotFound
from plinth.shared.platform_status import queue_message
from plinth.shared.queue import Queue, queue_names
from plinth.v1 import operations_pb2 as pb

QUEUE = Pattern("queues/{queue}")
ITEM = Pattern("queues/{queue}/items/{item=**}")
DEAD_LETTER = Pattern("queues/{queue}/deadLetters/{item=**}")
ALL = "-"


class QueueOperations:
    """Each method asks Redis anew and raises Unavailable while it is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def names(self) -> list[str]:
        """Of the queues that ever held an item, sorted."""
        return await queue_names(self._redis)

    async def get(self, name: str) -> pb.Queue:
        """One queue. NotFound."""
        return queue_message(name, await (await self._queue(name)).inspect())

    async def item(self, name: str, id: str) -> pb.QueueItem:
        """What became of an item. NotFound."""
        queue = await self._queue(name)
        if (found := await queue.find(id)) is None:
            raise NotFound(f"queue {name!r} knows no item {id!r}", reason="ITEM_NOT_FOUND")
        return pb.QueueItem(
            name=ITEM.name(name, id),
            state=enums.number(pb.QueueItemState, found.state),  # type: ignore[arg-type]
            attempts=found.attempts,
            reason=found.reason,
        )

    async def dead_letters(
        self, name: str, behind: str, count: int
    ) -> tuple[list[pb.DeadLetter], str]:
        """(up to `count` of that queue, or of all (ALL), behind a position that this gave before;
        the position of the last one, empty where no more are known to come)."""
        if name == ALL:
            names = await self.names()
        else:
            await self._queue(name)
            names = [name]
        first, _, after = behind.partition("/")
        found: list[tuple[str, DeadItem]] = []
        for one in names:
            if one < first or len(found) > count:
                continue
            wanted = count + 1 - len(found)
            page = await DeadLetters(self._redis, one).page(after if one == first else "", wanted)
            found.extend((one, letter) for letter in page)
        shown = found[:count]
        last = f"{shown[-1][0]}/{shown[-1][1].position()}" if len(found) > count else ""
        return [_message(queue, letter) for queue, letter in shown], last

    async def requeue(self, name: str, id: str) -> pb.QueueItem:
        """Lets a dead letter run again. NotFound; ResourceExhausted for a queue that is full."""
        if not await (await self._queue(name)).requeue(id):
            raise _no_letter(name, id)
        return await self.item(name, id)

    async def discard(self, name: str, id: str) -> None:
        """Removes a dead letter for good. NotFound."""
        await self._queue(name)
        if not await DeadLetters(self._redis, name).discard(id):
            raise _no_letter(name, id)

    async def _queue(self, name: str) -> Queue:
        if name not in (known := await self.names()):
            raise NotFound(
                f"no queue {name!r}; there are: {', '.join(known) or 'none'}",
                reason="QUEUE_NOT_FOUND",
            )
        return Queue(self._redis, name)


def _message(queue: str, letter: DeadItem) -> pb.DeadLetter:
    return pb.DeadLetter(
        name=DEAD_LETTER.name(queue, letter.id),
        reason=letter.reason,
        attempts=letter.attempts,
        payload_size_bytes=letter.payload_bytes,
        death_time=times.timestamp(letter.died_unix_ms),
    )


def _no_letter(queue: str, id: str) -> NotFound:
    return NotFound(f"{id!r} is no dead letter of queue {queue!r}", reason="DEAD_LETTER_NOT_FOUND")
