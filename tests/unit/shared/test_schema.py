"""No Plinth starts over data that a newer one wrote, or that is half restored."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from plinth.gateway.api_keys import KeyStore, ensure_first_key
from plinth.gateway.core import GatewayCore
from plinth.shared import redis_keys
from plinth.shared.connection import connect
from plinth.shared.errors import FailedPrecondition, Unauthenticated
from plinth.shared.schema import check_schema
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext


async def test_the_first_to_come_marks_it(redis_client: Redis) -> None:
    for _ in range(2):
        await check_schema(redis_client)
        assert await redis_client.get(redis_keys.SCHEMA_MARK) == b"1"


async def test_a_downgrade_is_refused_at_every_door(
    redis_server: str, redis_client: Redis, tmp_path: Path
) -> None:
    await redis_client.set(redis_keys.SCHEMA_MARK, redis_keys.SCHEMA + 1)
    settings = load_settings(data_dir=tmp_path, redis_url=redis_server)
    with pytest.raises(FailedPrecondition) as caught:
        await StageContext.open(settings, stage="trainer")
    for words in (
        f"key schema {redis_keys.SCHEMA + 1}",
        "Install that version again",
        "plinth restore",
    ):
        assert words in caught.value.message
    core = GatewayCore(settings)
    with pytest.raises(FailedPrecondition, match="newer Plinth"):
        await core.open()
    await core.close()
    assert await redis_client.get(redis_keys.SCHEMA_MARK) == b"2"
    assert await redis_client.exists(redis_keys.api_keys()) == 0


async def test_a_half_restored_redis_is_refused(redis_client: Redis) -> None:
    await redis_client.set(redis_keys.RESTORING_MARK, "20260101T000000Z-aa")
    with pytest.raises(FailedPrecondition, match="20260101T000000Z-aa is being restored"):
        await check_schema(redis_client)


async def test_a_redis_that_is_away_is_no_error() -> None:
    client = connect("redis://127.0.0.1:1/0")
    with capture_logs() as logs:
        await check_schema(client)
    await client.aclose()
    (said,) = logs
    assert (said["log_level"], said["event"]) == ("warning", "the schema of Redis was not checked")


async def test_revoking_the_first_key_takes_all_of_that_name(
    redis_server: str, redis_client: Redis, tmp_path: Path
) -> None:
    """After a restore beside a new data directory there are two."""
    store = KeyStore(redis_client)
    plain = [
        await ensure_first_key(
            load_settings(data_dir=tmp_path / one, redis_url=redis_server), store
        )
        for one in ("a", "b")
    ]
    assert plain[0] != plain[1]
    await store.revoke("first")
    for key in plain:
        with pytest.raises(Unauthenticated):
            await store.principal(key)
