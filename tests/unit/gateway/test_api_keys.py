"""Which keys the gateway trusts, for how long, and what it makes of records that can't be read."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import ResponseError

from patience import PATIENCE_S
from plinth.gateway import metrics
from plinth.gateway.keys import api_keys
from plinth.gateway.keys.api_keys import MISS_S, KeyStore
from plinth.gateway.keys.keyring import Keyring
from plinth.gateway.keys.records import KeyRecord, new_record
from plinth.shared import redis_keys
from plinth.shared.errors import DataLoss, NotFound, PlinthError, Unauthenticated, Unavailable
from plinth.shared.identity import hash_api_key
from plinth.shared.rpc.auth import MAX_VALUE_BYTES, encode_principal, parse_principal
from plinth.shared.settings import load_settings

RECORD = new_record("id", "acme", {"inference"}, "")
STALE_S = 60.0


class Scripted:
    """A Redis of one hash that fails when told to, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kept: dict[str, bytes] = {}
        self.failing: set[str] = set()  # "hgetall", "hget"
        self.failure: Exception = NotConnected("away")

    def clock(self) -> float:
        return self.now

    async def hgetall(self, _: str) -> dict[bytes, bytes]:
        self._answer("hgetall")
        return {digest.encode(): raw for digest, raw in self.kept.items()}

    async def hget(self, _: str, digest: str) -> bytes | None:
        self._answer("hget")
        return self.kept.get(digest)

    def _answer(self, command: str) -> None:
        if command in self.failing:
            raise self.failure

    def store(self) -> KeyStore:
        return KeyStore(self, stale_s=STALE_S, clock=self.clock)  # type: ignore[arg-type]


def raw(**changes: Any) -> bytes:
    return json.dumps({**json.loads(RECORD.to_json()), **changes}).encode()


UNREADABLE = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"[" * 100_000,
    *(raw(**{name: None}) for name in ("key_id", "tenant", "scopes", "revoked")),
    raw(revoked=0),
    raw(revoked="false"),
    raw(scopes="admin"),
    raw(scopes={"admin": True}),
    raw(scopes=[["admin"]]),
    raw(tenant="a b"),
    raw(tenant=["acme"]),
    raw(key_id=""),
    raw(key_id="x" * 257),
    raw(scopes=[f"{number}{'s' * 200}" for number in range(32)]),  # no stage takes as much
    b"{}",
]


@pytest.mark.parametrize("bad", UNREADABLE, ids=range(len(UNREADABLE)))
async def test_a_record_that_cant_be_read_holds_up_no_other(bad: bytes) -> None:
    redis = Scripted()
    store = redis.store()
    redis.kept = {hash_api_key("a"): raw(), hash_api_key("b"): raw(key_id="b")}
    await store.refresh()
    redis.kept = {hash_api_key("a"): raw(revoked=True), hash_api_key("b"): bad}
    await store.refresh()
    with pytest.raises(Unauthenticated):  # it was revoked meanwhile
        await store.principal("a")
    with pytest.raises(DataLoss, match="can't be read"):  # nobody is let in by it
        await store.principal("b")
    assert [record.key_id for record in await store.list()] == ["id"]
    bad = [entry.id for entry in await store.entries() if entry.record is None]
    assert bad == [f"unreadable-{hash_api_key('b')[:12]}"]
    assert metrics.UNREADABLE_KEYS._value.get() == 1
    redis.kept[hash_api_key("b")] = raw(key_id="b")
    await store.refresh()
    assert (await store.principal("b")).key_id == "b"
    assert metrics.UNREADABLE_KEYS._value.get() == 0


async def test_each_unreadable_record_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(api_keys._log, "error", lambda _, **about: told.append(about["record"]))
    redis = Scripted()
    store = redis.store()
    redis.kept = {hash_api_key(name): b"{" for name in "ab"}
    for _ in range(3):
        await store.refresh()
        with pytest.raises(DataLoss):
            await store.principal("a")
    assert sorted(told) == sorted(f"unreadable-{hash_api_key(name)[:12]}" for name in "ab")
    assert not any(hash_api_key(name) in line for name in "ab" for line in told)


async def test_a_newer_versions_fields_are_passed_over_and_kept(redis_client: Redis) -> None:
    digest, hash_name = hash_api_key("a"), redis_keys.api_keys()
    await redis_client.hset(hash_name, digest, raw(expires_unix_ms=7, scopes=["inference", "new"]))
    store = KeyStore(redis_client)
    assert (await store.principal("a")).scopes == {"inference", "new"}
    await store.revoke("id")
    kept = json.loads(await redis_client.hget(hash_name, digest))
    assert kept == {**json.loads(raw(scopes=["inference", "new"], revoked=True)), **kept}
    assert kept["expires_unix_ms"] == 7
    with pytest.raises(Unauthenticated):
        await KeyStore(redis_client).principal("a")


async def test_an_unreadable_record_can_be_revoked(redis_client: Redis) -> None:
    digest = hash_api_key("a")
    await redis_client.hset(redis_keys.api_keys(), digest, b"{")
    store = KeyStore(redis_client)
    await store.refresh()
    (id_,) = (entry.id for entry in await store.entries())
    assert (await store.revoke(id_)).revoked
    with pytest.raises(Unauthenticated):
        await KeyStore(redis_client).principal("a")
    assert all(entry.record is not None for entry in await store.entries())
    with pytest.raises(NotFound):
        await store.revoke("unreadable-000000000000")


async def test_a_key_that_another_process_made_is_taken_at_once(redis_client: Redis) -> None:
    here, there = KeyStore(redis_client), KeyStore(redis_client)
    await here.refresh()
    with pytest.raises(Unauthenticated):
        await here.principal("plinth-of-nobody")
    plain, record = await there.create("acme", {"inference"})
    assert (await here.principal(plain)).key_id == record.key_id


KEYS = "abc"
_OUTAGE = st.sampled_from([(), ("hgetall",), ("hget",), ("hgetall", "hget")])
_DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("make"), st.sampled_from(KEYS)),
        st.tuples(st.just("revoke"), st.sampled_from(KEYS)),
        st.tuples(st.just("remove"), st.sampled_from(KEYS)),
        st.tuples(st.just("break"), st.sampled_from(KEYS)),
        st.tuples(st.just("fail"), _OUTAGE),
        st.tuples(st.just("refresh"), st.none()),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 3.0, 20.0, 45.0])),
        st.tuples(st.just("ask"), st.sampled_from(KEYS)),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(_DEEDS)
def test_no_key_is_trusted_longer_than_the_bound(deeds: list[tuple[str, Any]]) -> None:
    """Whoever is let in held a valid key in Redis within the bound, whatever failed since; and who
    holds one that Redis can confirm now is let in, whatever else lies there (after the next refresh
    where its record said something else before)."""
    asyncio.run(_live_through(deeds))


async def _live_through(deeds: list[tuple[str, Any]]) -> None:
    redis = Scripted()
    store = redis.store()
    valid_until = dict.fromkeys(KEYS, -1e9)  # when Redis last held it, valid
    asked_in_vain = dict.fromkeys(KEYS, -1e9)
    outage_seen = -1e9
    valid: set[str] = set()
    known_bad: set[str] = set()  # it has read a bad record of them, which it keeps for a while
    for deed, about in deeds:
        valid_until.update(dict.fromkeys(valid, redis.now))
        if deed == "pass":
            redis.now += about
        elif deed == "fail":
            redis.failing = set(about)
        elif deed == "refresh":
            if "hgetall" in redis.failing:
                with pytest.raises(Unavailable):
                    await store.refresh()
            else:
                await store.refresh()
                known_bad = {key for key in KEYS if hash_api_key(key) in redis.kept} - valid
        elif deed == "ask":
            confirmable = not redis.failing and about in valid - known_bad
            try:
                await store.principal(about)
            except PlinthError as error:
                waits = redis.now - max(asked_in_vain[about], outage_seen) < MISS_S
                assert not confirmable or waits, error
                asked_in_vain[about] = redis.now
                if redis.failing:  # nobody else waits for it
                    outage_seen = redis.now
                if about not in valid:
                    known_bad.add(about)
            else:
                assert about in valid or redis.now - valid_until[about] <= STALE_S
        else:
            digest = hash_api_key(about)
            valid.discard(about)
            if deed == "make":
                redis.kept[digest] = raw()
                valid.add(about)
            elif deed == "revoke":
                redis.kept[digest] = raw(revoked=True)
            elif deed == "break":
                redis.kept[digest] = b"{"
            else:
                redis.kept.pop(digest, None)
        valid_until.update(dict.fromkeys(valid, redis.now))


async def test_an_outage_is_borne_for_the_bound_and_then_told() -> None:
    redis = Scripted()
    store = redis.store()
    redis.kept = {hash_api_key("a"): raw()}
    await store.refresh()
    redis.failing = {"hgetall", "hget"}
    redis.now = STALE_S
    assert (await store.principal("a")).tenant == "acme"
    redis.now += 1
    with pytest.raises(Unavailable, match=r"trusted for 60 s \(gateway.keys_stale_s\)") as caught:
        await store.principal("a")
    assert (caught.value.http, caught.value.retry_after_s) == (503, 1.0)
    redis.failing = set()
    redis.now += 1
    assert (await store.principal("a")).tenant == "acme"


async def test_a_crowd_does_not_wait_in_turn_for_a_redis_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_keys, "LOOK_UP_S", 0.05)
    redis = Scripted()
    store, asked = KeyStore(redis), 0  # type: ignore[arg-type]

    async def hget(_: str, __: str) -> bytes | None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        return None

    redis.hget = hget  # type: ignore[method-assign]
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(
            *(store.principal(str(n)) for n in range(500)), return_exceptions=True
        )
    assert all(isinstance(answer, Unavailable) for answer in answers)
    assert asked <= api_keys.LOOK_UPS


@pytest.mark.parametrize(
    "failure", [NotConnected("away"), ResponseError("WRONGTYPE"), OSError("no descriptors")]
)
async def test_revoking_goes_on_after_whatever_went_wrong(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Also where the first key can't be made: the folder of secrets is open to others."""
    monkeypatch.setattr("plinth.gateway.keys.keyring.REFRESH_S", 0.001)
    monkeypatch.setattr("plinth.gateway.keys.keyring.AGAIN_S", 0.001)
    redis = Scripted()
    store = redis.store()
    redis.kept = {hash_api_key("a"): raw()}
    redis.failing, redis.failure = {"hgetall"}, failure
    settings = load_settings(data_dir=tmp_path / "data")
    settings.secrets_dir.mkdir(parents=True)
    settings.secrets_dir.chmod(0o755)
    fresh = asyncio.create_task(Keyring(store, settings).keep_fresh())
    assert (await store.principal("a")).tenant == "acme"
    redis.kept = {hash_api_key("a"): raw(revoked=True)}
    redis.failing = set()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await store.principal("a")
            except Unauthenticated:
                break
            await asyncio.sleep(0)
    assert not fresh.done()
    fresh.cancel()
    await asyncio.gather(fresh, return_exceptions=True)


def test_a_record_says_the_same_after_json() -> None:
    record = KeyRecord("id", "acme", frozenset({"jobs"}), "note", 5, True)
    assert KeyRecord.from_json(record.to_json()) == record


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


@given(
    field=st.sampled_from(["label", "created_unix_ms", "key_id", "tenant", "scopes", "revoked"]),
    value=JSON_VALUES
    | st.integers(10**15, 10**40)
    | st.sampled_from(["\x1b[2J", "\ud800", "a\nb"]),
)
def test_whatever_a_record_holds_a_list_can_show_it(field: str, value: Any) -> None:
    """On a terminal, as a table and as JSON; one that can't be shown would hide all others."""
    try:
        record = KeyRecord.from_json(raw(**{field: value}))
    except DataLoss:
        return
    time.localtime(record.created_unix_ms / 1000)
    shown = [record.key_id, record.tenant, record.label, *record.scopes]
    assert all(text.isprintable() for text in shown)
    "".join(shown).encode()
    assert parse_principal(encode_principal(record.principal())) == record.principal()
    assert len(encode_principal(record.principal())) <= MAX_VALUE_BYTES
