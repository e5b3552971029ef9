"""Connections to Redis, and what its failures mean to the rest of Plinth.

Callers above never see redis-py's exceptions: a server that is gone, or that is full and takes no
writes, is `Unavailable` (try again, nothing is lost), a refused password is `FailedPrecondition`.
A full Redis is nobody's quota: `ResourceExhausted` would tell clients that they asked too much.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
import redis.exceptions as failures
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from plinth.shared.errors import FailedPrecondition, InvalidArgument, Unavailable

SOCKET_TIMEOUT_S = 5.0
# Per client. A command that finds all of them taken waits for its turn; a blocking read holds one
# for a second at the most (`queue.py`).
MAX_CONNECTIONS = 64
TURN_S = 10.0


def connect(url: str) -> Redis:
    """A client for `url` (redis://, rediss:// or unix://); connects at its first command.

    Answers are bytes. At most MAX_CONNECTIONS commands are on their way at a time; others wait for
    TURN_S at the most (Unavailable). A command that meets a broken connection is tried again three
    times within about half a second, so every command that Plinth sends must be safe to send twice.
    InvalidArgument for what is no such URL.
    """
    with _url_errors():
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=TURN_S,
            decode_responses=False,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=2.0,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=0.3, base=0.05), 3),
        )
    return Redis.from_pool(pool)


def connect_blocking(url: str) -> redis.Redis:
    """A blocking client that sends every command once: what meets a broken connection raises.
    InvalidArgument as `connect`."""
    with _url_errors():
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=int(TURN_S),
            decode_responses=False,
            socket_timeout=4 * SOCKET_TIMEOUT_S,  # its commands are larger than a stage's
            socket_connect_timeout=2.0,
            retry=None,
        )
    return redis.Redis.from_pool(pool)


@contextmanager
def _url_errors() -> Iterator[None]:
    """Without the URL, which holds a password."""
    try:
        yield
    except ValueError:
        raise InvalidArgument(
            "redis_url is no URL of a Redis: write redis://:password@host:6379/0, rediss://… for "
            "TLS, or unix:///path/of/its.sock",
            reason="REDIS_URL",
            field="redis_url",
        ) from None


@contextmanager
def redis_errors() -> Iterator[None]:
    """Translates what redis-py raises inside the block."""
    try:
        yield
    except (failures.AuthenticationError, failures.AuthorizationError) as error:
        raise FailedPrecondition(
            f"Redis refuses the credentials: {error}. Check the password in redis_url.",
            reason="REDIS_CREDENTIALS",
        ) from error
    except (
        failures.ConnectionError,
        failures.TimeoutError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise Unavailable(
            f"Redis does not answer: {error}", reason="REDIS_UNAVAILABLE", retry_after_s=1.0
        ) from error
    except failures.ResponseError as error:
        raise _response_error(error) from error


def _response_error(error: failures.ResponseError) -> Exception:
    text = str(error)
    if isinstance(error, failures.OutOfMemoryError) or "OOM command not allowed" in text:
        return Unavailable(
            "Redis is at its memory limit: raise maxmemory, or let queued work finish",
            reason="REDIS_MEMORY",
            retry_after_s=5.0,
        )
    if text.startswith(("MOVED ", "ASK ", "CROSSSLOT")) or isinstance(error, failures.AskError):
        return FailedPrecondition(
            "this Redis is a node of a Redis Cluster, which Plinth does not speak to: point "
            "redis_url at a single server (7.2 or later)",
            reason="REDIS_CLUSTER",
        )
    transient = ("MISCONF", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "LOADING")
    if isinstance(error, failures.ReadOnlyError | failures.ClusterDownError) or any(
        word in text for word in transient
    ):
        return Unavailable(
            f"Redis takes no writes now: {text}", reason="REDIS_UNAVAILABLE", retry_after_s=1.0
        )
    return error
