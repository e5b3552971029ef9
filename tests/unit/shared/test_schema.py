"""No Plinth starts over data that a newer one or another release wrote, or that is half
restored."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from plinth.gateway.core import GatewayCore
from plinth.shared import redis_keys
from plinth.shared.connection import connect
from plinth.shared.errors import FailedPrecondition
from plinth.shared.schema import claim_redis
from plinth.shared.settings import load_settings
from plinth.shared.stage import StageContext


async def test_the_first_to_come_marks_it(redis_client: Redis) -> None:
    for _ in range(2):
        await claim_redis(redis_client, None)
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
        await claim_redis(redis_client, None)


async def test_a_redis_that_is_away_is_no_error() -> None:
    client = connect("redis://127.0.0.1:1/0")
    with capture_logs() as logs:
        await claim_redis(client, None)
    await client.aclose()
    (said,) = logs
    assert (said["log_level"], said["event"]) == (
        "warning",
        "the schema and the owner of Redis were not checked",
    )


async def test_anothers_database_is_refused_at_every_door(
    redis_server: str, redis_client: Redis, tmp_path: Path
) -> None:
    """Of one name in two namespaces, and of no release at all (`plinth up` on the same address)."""
    owners = load_settings(data_dir=tmp_path, redis_url=redis_server, release="team-a/plinth")
    for _ in range(2):  # again, as after a restart
        await (await StageContext.open(owners, stage="trainer")).close()
    for release in ("team-b/plinth", "team-a/plint", None):
        settings = load_settings(data_dir=tmp_path, redis_url=redis_server, release=release)
        with pytest.raises(FailedPrecondition) as caught:
            await StageContext.open(settings, stage="trainer")
        assert caught.value.reason == "REDIS_OF_ANOTHER_RELEASE"
        for words in ("the release team-a/plinth's", release or "of no release", "redis.database"):
            assert words in caught.value.message
        core = GatewayCore(settings)
        with pytest.raises(FailedPrecondition, match="release team-a/plinth's"):
            await core.open()
        await core.close()
    assert await redis_client.get(redis_keys.RELEASE_MARK) == b"team-a/plinth"


async def test_what_an_uninstalled_release_left_is_taken_over_as_the_refusal_says(
    redis_client: Redis,
) -> None:
    await redis_client.set(redis_keys.api_keys(), "kept")
    await claim_redis(redis_client, "old/plinth")
    with pytest.raises(FailedPrecondition) as caught:
        await claim_redis(redis_client, "new/plinth")
    (command,) = re.findall(r"redis-cli -n 0 (DEL '\S+')", caught.value.message)
    await redis_client.execute_command(*shlex.split(command))
    await claim_redis(redis_client, "new/plinth")
    assert await redis_client.get(redis_keys.RELEASE_MARK) == b"new/plinth"
    assert await redis_client.get(redis_keys.api_keys()) == b"kept"


async def test_a_database_of_no_release_becomes_the_first_ones(redis_client: Redis) -> None:
    """As one does that an older Plinth wrote."""
    await claim_redis(redis_client, None)
    assert await redis_client.exists(redis_keys.RELEASE_MARK) == 0
    await claim_redis(redis_client, "team-a/plinth")
    with pytest.raises(FailedPrecondition):
        await claim_redis(redis_client, None)


async def test_a_refused_release_marks_nothing(redis_client: Redis) -> None:
    await redis_client.set(redis_keys.SCHEMA_MARK, redis_keys.SCHEMA + 1)
    with pytest.raises(FailedPrecondition):
        await claim_redis(redis_client, "team-a/plinth")
    assert await redis_client.exists(redis_keys.RELEASE_MARK) == 0
