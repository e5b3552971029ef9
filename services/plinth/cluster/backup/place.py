"""Which Redis a backup reads, or a restore writes: the running stack's, one's own, or the embedded
one, which is then started for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plinth.cluster.backup.freeze import check_primary, live_replicas
from plinth.cluster.backup.values import Client
from plinth.cluster.embedded_redis import EmbeddedRedis
from plinth.cluster.layout import Layout
from plinth.cluster.stack import Stack, leftovers, running_state
from plinth.cluster.supervisor import take_lock
from plinth.shared import redis_keys
from plinth.shared.connection import connect_blocking, redis_errors
from plinth.shared.errors import FailedPrecondition, NotFound
from plinth.shared.settings import Settings


@contextmanager
def source_redis(settings: Settings) -> Iterator[Client]:
    """For reading; a stack may run. NotFound: there is no state to be read."""
    if settings.redis_url is not None:
        with _client(settings.redis_url.get_secret_value()) as client:
            yield client
    elif Stack(settings).running():
        with _client(running_state(settings).redis_url) as client:
            yield client
    elif not (settings.data_dir / "redis").is_dir():
        raise NotFound(
            f"no stack was ever started on {settings.data_dir}: name its folder with --data, or "
            "its Redis with PLINTH_REDIS_URL",
            reason="STACK_NOT_STARTED",
        )
    else:
        with _embedded(settings) as client:
            yield client


@contextmanager
def target_redis(settings: Settings) -> Iterator[Client]:
    """For writing, while nobody else is there. FailedPrecondition: a stack runs, or the Redis is
    read-only."""
    if Stack(settings).running():
        raise FailedPrecondition(
            f"a stack runs on {settings.data_dir}: stop it first (`plinth down`)",
            reason="STACK_RUNNING",
        )
    if left := leftovers(settings):
        raise FailedPrecondition(
            f"{len(left)} processes of a killed stack still run on {settings.data_dir}: clear "
            "them first (`plinth down`)",
            reason="STACK_RUNNING",
        )
    if settings.redis_url is None:
        with _embedded(settings) as client:
            yield client
        return
    with take_lock(Layout.of(settings)), _client(settings.redis_url.get_secret_value()) as client:
        with redis_errors():
            check_primary(client)
            check_nobody(client)
        yield client


def check_nobody(client: Client) -> None:
    """FailedPrecondition when stages use this Redis."""
    live = live_replicas(client)
    leases = [
        raw.decode() for raw in client.scan_iter(match=f"{redis_keys.PREFIX}:lease:*", count=1000)
    ]
    if live or leases:
        raise FailedPrecondition(
            f"a platform runs on this Redis ({', '.join([*live, *leases][:5])}): stop its stages "
            "and its gateway first; an announcement lapses some seconds after its process",
            reason="STACK_RUNNING",
        )


@contextmanager
def _embedded(settings: Settings) -> Iterator[Client]:
    """The data directory's lock is held meanwhile, so that no stack starts."""
    with take_lock(Layout.of(settings)):
        server = EmbeddedRedis(settings.data_dir)
        try:
            with _client(server.start()) as client:
                yield client
        finally:
            server.stop()


@contextmanager
def _client(url: str) -> Iterator[Client]:
    client = connect_blocking(url)
    try:
        with redis_errors():
            client.ping()
        yield client
    finally:
        client.close()
