"""Dead letters of one queue as an operator sees them: in pages, without what they carry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from plinth.shared import queue_scripts as scripts
from plinth.shared.connection import redis_errors
from plinth.shared.redis_keys import QueueKeys

_REMEMBERED_MS = 7 * 86_400_000


@dataclass(frozen=True)
class DeadItem:
    """died_unix_ms: when its last attempt failed. payload_bytes: how much it carries."""

    id: str
    died_unix_ms: int
    attempts: int
    reason: str
    payload_bytes: int

    def position(self) -> str:
        """In the list; no two have the same."""
        return f"{self.died_unix_ms}.{self.id}"


class DeadLetters:
    """Those of the queue `name`. Raises Unavailable while Redis is away."""

    def __init__(self, redis: Redis, name: str) -> None:
        keys = QueueKeys(name)
        self._redis = redis
        self._keys = [keys.stream, keys.items, keys.payloads, keys.leases, keys.delayed]
        self._keys += [keys.dead, keys.cancelled, keys.fence]

    async def page(self, behind: str, count: int) -> list[DeadItem]:
        """Up to `count`, newest first, behind that position; "": from the newest."""
        died, _, id = behind.partition(".")
        flat = await self._run(scripts.DEAD_PAGE, [count, died, id])
        return [
            DeadItem(id.decode(), died, attempts, reason.decode(errors="replace"), size)
            for id, died, attempts, reason, size in zip(*[iter(flat)] * 5, strict=True)
        ]

    async def discard(self, id: str) -> bool:
        """Removes one for good, and its id is not accepted again for a week. False: it is none."""
        return bool(await self._run(scripts.DISCARD, [id, _REMEMBERED_MS]) == b"ok")

    async def _run(self, body: str, args: list[Any]) -> Any:
        with redis_errors():
            script = self._redis.register_script(scripts.PRELUDE + body)
            return await script(keys=self._keys, args=args)
