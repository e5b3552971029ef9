"""A platform has one first key, however many gateways start, wherever their data lies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.gateway.keys.api_keys import KeyStore
from plinth.gateway.keys.first_key import ensure_first_key
from plinth.gateway.keys.keyring import Keyring
from plinth.shared import redis_keys
from plinth.shared.errors import InvalidArgument, Unauthenticated
from plinth.shared.identity import create_secret, new_api_key
from plinth.shared.settings import Settings, load_settings
from plinth.shared.tasks import cancel_and_wait

GIVEN = "given-" + "k" * 40


def places(tmp_path: Path, count: int) -> list[Settings]:
    return [load_settings(data_dir=tmp_path / str(n)) for n in range(count)]


def files(settings: Iterable[Settings]) -> list[str]:
    """The keys that lie in the data directories."""
    return [
        path.read_text()
        for one in settings
        for path in one.secrets_dir.iterdir()
        if path.name != "cluster-token"
    ]


async def start(settings: Iterable[Settings], redis: Redis) -> None:
    """A gateway on each, at once."""
    await asyncio.gather(*(ensure_first_key(one, KeyStore(redis)) for one in settings))


@pytest.mark.parametrize("count", [1, 2, 8])
async def test_gateways_that_start_at_once_make_one_key(
    count: int, tmp_path: Path, redis_client: Redis
) -> None:
    settings = places(tmp_path, count)
    for _ in range(2):  # a restart changes nothing
        await start(settings, redis_client)
        records = await KeyStore(redis_client).list()
        assert [(record.key_id, record.scopes) for record in records] == [("first", {"admin"})]
        (plain,) = files(settings)
        assert (await KeyStore(redis_client).principal(plain)).key_id == "first"
    made = [one.first_key_file for one in settings if one.first_key_file.exists()]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o600]


async def test_gateways_of_one_data_directory_share_it(tmp_path: Path, redis_client: Redis) -> None:
    settings = places(tmp_path, 1)
    await start(settings * 5, redis_client)
    (plain,) = files(settings)
    assert len(await KeyStore(redis_client).list()) == 1
    assert (await KeyStore(redis_client).principal(plain)).key_id == "first"


@pytest.mark.parametrize("revoked", [False, True])
async def test_a_platform_that_has_keys_gets_none(
    revoked: bool, tmp_path: Path, redis_client: Redis
) -> None:
    """As after a restore into a new data directory."""
    store = KeyStore(redis_client)
    _, record = await store.create("acme", {"inference"})
    if revoked:
        await store.revoke(record.key_id)
    settings = places(tmp_path, 2)
    await start(settings, redis_client)
    assert files(settings) == []
    assert [one.key_id for one in await store.list()] == [record.key_id]


async def test_a_key_file_of_another_platform_lets_nobody_in(
    tmp_path: Path, redis_client: Redis
) -> None:
    await KeyStore(redis_client).create("acme", {"inference"})
    (settings,) = places(tmp_path, 1)
    settings.ensure_secrets_dir()
    plain, _ = new_api_key()
    create_secret(settings.first_key_file, plain)
    await ensure_first_key(settings, KeyStore(redis_client))
    with pytest.raises(Unauthenticated):
        await KeyStore(redis_client).principal(plain)
    assert settings.first_key_file.read_text() == plain  # its owner's to remove


async def test_a_gateway_that_died_in_between_goes_on_with_its_key(
    tmp_path: Path, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings,) = places(tmp_path, 1)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(KeyStore, "refresh", killed)  # right after Redis took the claim
        await ensure_first_key(settings, KeyStore(redis_client))
    assert not settings.first_key_file.exists()
    await ensure_first_key(settings, KeyStore(redis_client))
    plain = settings.first_key_file.read_text()
    assert (await KeyStore(redis_client).principal(plain)).key_id == "first"
    assert files([settings]) == [plain]


async def test_a_key_that_is_given_is_made_known_and_stays_revoked(
    tmp_path: Path, redis_client: Redis
) -> None:
    settings = [
        load_settings(data_dir=tmp_path / str(n), gateway={"first_key": GIVEN}) for n in range(3)
    ]
    await start(settings, redis_client)
    store = KeyStore(redis_client)
    assert [record.key_id for record in await store.list()] == ["first"]
    assert (await store.principal(GIVEN)).scopes == {"admin"}
    assert not any(one.secrets_dir.exists() for one in settings)  # it is kept elsewhere
    await store.revoke("first")
    await start(settings, redis_client)
    with pytest.raises(Unauthenticated):
        await KeyStore(redis_client).principal(GIVEN)


@pytest.mark.parametrize(
    "bad", ["", "short", "k" * 40 + " k", "k" * 513, "é" * 40, "k" * 40 + "\n"]
)
def test_a_weak_first_key_is_refused_and_not_printed(bad: str) -> None:
    with pytest.raises(InvalidArgument, match="first_key") as caught:
        load_settings(gateway={"first_key": bad})
    assert len(bad) < 6 or bad not in caught.value.message


@pytest.mark.parametrize("given", [True, False])
async def test_a_redis_that_lost_all_keys_lets_its_operator_in_again(
    tmp_path: Path, redis_client: Redis, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """Without a restart of the gateway; a key that was revoked does not come back while others
    are known."""
    monkeypatch.setattr("plinth.gateway.keys.keyring.REFRESH_S", 0.01)
    gateway = {"first_key": GIVEN} if given else {}
    settings = load_settings(data_dir=tmp_path, gateway=gateway)
    store = KeyStore(redis_client)
    keyring = Keyring(store, settings)
    await keyring.open()
    plain = GIVEN if given else settings.first_key_file.read_text()
    fresh = asyncio.create_task(keyring.keep_fresh())
    try:
        await redis_client.flushall()
        async with asyncio.timeout(PATIENCE_S):
            while not await redis_client.exists(redis_keys.api_keys()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await keyring.bearer(f"Bearer {plain}")).key_id == "first"
        other, _ = await KeyStore(redis_client).create("acme", {"inference"})
        await store.revoke("first")
        assert (await keyring.bearer(f"Bearer {other}")).tenant == "acme"
        with pytest.raises(Unauthenticated):
            await keyring.bearer(f"Bearer {plain}")
    finally:
        await cancel_and_wait(fresh)
