"""All of Redis at one instant, read while its writers wait: `CLIENT PAUSE … WRITE`.

Reads go on, and so do streams of tokens, which never wait for Redis; a write waits as it would
for a slow disk. The pause ends by itself some seconds after this process last renewed it, so that
a backup that is killed holds nobody. What was read is only taken if the pause never lapsed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import redis
import redis.exceptions as failures

from plinth.cluster.backup.values import Client
from plinth.shared.errors import Aborted, DeadlineExceeded, FailedPrecondition
from plinth.shared.redis_keys import BACKUP_MARK, PREFIX

PAUSE_S = 3.0
LIMIT_S = 20.0


class PauseLapsed(Aborted):
    """Writers went on while the state was read: read it again."""


class Freeze:
    """Holds writers from `with` to its end; call `beat` at least every second."""

    def __init__(self, client: Client, limit_s: float = LIMIT_S) -> None:
        """limit_s: longest that writers may wait. DeadlineExceeded then."""
        self._client, self._limit_s = client, limit_s
        self._began = self._sent = 0.0
        self.seconds = 0.0  # how long writers waited, once it is over

    def __enter__(self) -> Freeze:
        self._began = time.monotonic()
        self._pause()
        return self

    def beat(self) -> None:
        """Renews the pause when it is time. PauseLapsed when it may have ended before."""
        now = time.monotonic()
        if now - self._sent >= PAUSE_S:
            raise PauseLapsed(
                "this machine was too slow to read Redis at one instant; try again",
                reason="PAUSE_LAPSED",
            )
        if now - self._began > self._limit_s:
            raise DeadlineExceeded(
                f"Redis holds more than can be read in {self._limit_s:.0f} s, and its writers "
                "wait meanwhile: allow more with --max-pause, or stop the platform for the backup",
                reason="BACKUP_PAUSE_LIMIT",
            )
        if now - self._sent > PAUSE_S / 3:
            self._pause()

    def _pause(self) -> None:
        sent = time.monotonic()
        self._client.client_pause(int(PAUSE_S * 1000), all=False)
        self._sent = sent

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.beat()
        finally:
            if not isinstance(error, redis.ConnectionError):
                self._client.client_unpause()
            self.seconds = time.monotonic() - self._began


class NoFreeze(Freeze):
    """For a Redis that allows no pause, while nobody is there to write."""

    def _pause(self) -> None:
        self._sent = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds = 0.0


@contextmanager
def alone(client: Client, limit_s: float) -> Iterator[None]:
    """One backup at a time, since the first to end would end the other's pause. Aborted."""
    life_ms = int((limit_s + 10 * PAUSE_S) * 1000)
    if not client.set(BACKUP_MARK, "1", nx=True, px=life_ms):
        raise Aborted(
            "another backup is reading this Redis (or broke off less than a minute ago): try "
            "again later",
            reason="BACKUP_RUNNING",
        )
    try:
        yield
    finally:
        client.delete(BACKUP_MARK)


def freeze(client: Client, limit_s: float) -> Freeze:
    """FailedPrecondition: this Redis allows no pause, and a platform is running on it."""
    try:
        client.client_pause(1, all=False)
    except failures.ResponseError as error:
        if running := live_replicas(client):
            raise FailedPrecondition(
                f"this Redis refuses CLIENT PAUSE ({error}), without which state that "
                f"{len(running)} replicas change can't be read at one instant: allow it "
                "(ACL SETUSER <user> +client|pause +client|unpause), or stop the platform for "
                "the backup",
                reason="PAUSE_REFUSED",
            ) from error
        return NoFreeze(client, limit_s)
    return Freeze(client, limit_s)


def live_replicas(client: Client) -> list[str]:
    """Replicas that announced themselves within the last seconds, as stage/id."""
    seconds, micros = client.time()
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    found = []
    for raw in client.scan_iter(match=f"{PREFIX}:replicas:*", count=1000):
        stage = raw.decode().partition("{")[2].rstrip("}")
        for member in client.zrangebyscore(raw, f"({now_ms}", "+inf"):
            found.append(f"{stage}/{member.decode()}")
    return sorted(found)


def check_primary(client: Client) -> None:
    """FailedPrecondition when this is a replica, which changes under the reading and takes no
    writes."""
    if client.info("replication").get("role") != "master":
        raise FailedPrecondition(
            "redis_url names a read-only replica: give the address of the primary",
            reason="REDIS_READ_ONLY",
            field="redis_url",
        )
