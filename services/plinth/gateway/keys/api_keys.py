"""API keys: only their SHA-256 is kept, with tenant and scopes, in one Redis hash.

All records are held in memory and read again every few seconds, so a known key costs no round
trip, works through a short absence of Redis, and stops within seconds once it is revoked. What
Redis has not confirmed for `gateway.keys_stale_s` is asked for again, key by key, and refused as
unavailable while that can't be: however reading fails, a revoked key is not taken for longer.
Revoking leaves the record with a mark, so that nothing brings the key back by accident.

A record that can't be read admits nobody, and holds up no other one.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from redis.asyncio import Redis

from plinth.gateway import metrics
from plinth.gateway.keys.entries import KeyEntry
from plinth.gateway.keys.records import (
    KeyRecord,
    changed_json,
    new_record,
    now_ms,
    unreadable_record,
)
from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import DataLoss, NotFound, Unauthenticated, Unavailable
from plinth.shared.identity import Principal, hash_api_key, is_api_key, new_api_key
from plinth.shared.settings_sections import GatewaySettings
from plinth.shared.telemetry import get_logger

REFRESH_S = 5.0
AGAIN_S = 1.0  # after a refresh or a look-up that failed
MISS_S = 2.0  # an unknown key is not asked for again so soon
LOOK_UP_S = 2.0  # of one key: a client waits for it
LOOK_UPS = 16  # at the same time
MAX_MISSES = 10_000
MAX_KEY_CHARS = 512

_log = get_logger("plinth.gateway")

Stays = Callable[[Sequence[KeyEntry]], KeyEntry | None]


class KeyStore:
    """Keys as the gateway checks them; `manager.py` manages them.

    stale_s: for how long a record is trusted after Redis gave it. `clock`: seconds, monotonic.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        stale_s: float = GatewaySettings().keys_stale_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._stale_s = stale_s
        self._clock = clock
        self._known: dict[str, KeyEntry] = {}
        self._misses: dict[str, float] = {}
        self._told: set[str] = set()  # hashes whose unreadable record was logged
        self._look_ups = asyncio.Semaphore(LOOK_UPS)
        self._away = -math.inf  # when a look-up last found that Redis does not answer

    async def create(
        self, tenant: str, scopes: Collection[str], label: str = ""
    ) -> tuple[str, KeyRecord]:
        """(the key, shown this once; its record). InvalidArgument for a scope that isn't one."""
        record = new_record(uuid.uuid4().hex[:12], tenant, scopes, label)
        plain, _ = new_api_key()
        await self.add(plain, record)
        return plain, record

    async def add(self, plain: str, record: KeyRecord) -> KeyEntry:
        """Makes `plain` known unless it is. Gives what is kept of it."""
        digest, began = hash_api_key(plain), self._clock()
        with redis_errors():
            await self._redis.hsetnx(redis_keys.api_keys(), digest, record.to_json())
            raw = await self._redis.hget(redis_keys.api_keys(), digest)
        if raw is None:  # somebody removed it between the two
            raise Unavailable("the key was removed while it was made; try again")
        self._known[digest] = entry = self._read(digest, _bytes(raw), began)
        return entry

    async def entries(self) -> Sequence[KeyEntry]:
        """All keys as Redis has them now, oldest first, revoked and unreadable ones too."""
        await self.refresh()
        return sorted(self._known.values(), key=KeyEntry.position)

    async def list(self) -> list[KeyRecord]:
        """Those that can be read, oldest first."""
        return [entry.record for entry in await self.entries() if entry.record is not None]

    async def found(self, key_id: str) -> Sequence[KeyEntry]:
        """Those of that id: one, unless somebody wrote records by hand. NotFound when none."""
        found = [entry for entry in await self.entries() if entry.id == key_id]
        if not found:
            # The key itself, given for its id, is told nobody: errors end in logs and tickets.
            what = (
                "that id, which looks like a key" if is_api_key(key_id) else f"id {key_id[:64]!r}"
            )
            raise NotFound(
                f"no API key has {what}; `plinth keys list` shows them", reason="KEY_NOT_FOUND"
            )
        return found

    @property
    def has_keys(self) -> bool:
        """Whether there was any at the last refresh, be it revoked or unreadable."""
        return bool(self._known)

    async def revoke(self, key_id: str, stays: Stays = lambda _: None) -> KeyRecord:
        """Takes a key away for good. NotFound when there is none of that id; all of them go where
        several have it. An unreadable record is replaced by one that is readable and revoked.
        stays: the entry without which none of these is revoked, as `swap` takes it; may raise."""
        while True:
            entries = [entry for entry in await self.found(key_id) if not entry.revoked]
            other = stays(entries)
            swapped = [await self.swap(entry, _revoked(entry), other) for entry in entries]
            if all(swapped):
                record = (await self.found(key_id))[-1].record
                assert record is not None
                return record

    async def swap(self, entry: KeyEntry, raw: str, stays: KeyEntry | None = None) -> bool:
        """Writes `raw` in place of the entry's record, if that is still what Redis has: else two
        who change a key at once would undo each other, and a revoked key could come back. The same
        goes for the record of `stays`, another key, which the change was decided on."""
        beside = () if stays is None else (stays.digest, stays.raw)
        return await self._moved(_SWAP, entry, raw, *beside)

    @property
    def known(self) -> Sequence[KeyEntry]:
        """All keys as they were read last."""
        return list(self._known.values())

    async def remove(self, entry: KeyEntry) -> bool:
        """Forgets the entry, if it is still what Redis has."""
        return await self._moved(_REMOVE, entry)

    async def _moved(self, script: str, entry: KeyEntry, *raw: str | bytes) -> bool:
        with redis_errors():
            done = await self._redis.register_script(script)(
                keys=[redis_keys.api_keys()], args=[entry.digest, entry.raw, *raw]
            )
        await self.refresh()
        return bool(done)

    async def claim_first(self, plain: str, record: KeyRecord) -> bool:
        """Makes `plain` the first key of a platform that has none, not even a revoked one; of many
        that claim at once, one does. Whether `plain` is a key of the platform now."""
        with redis_errors():
            known = await self._redis.register_script(_CLAIM)(
                keys=[redis_keys.api_keys()], args=[hash_api_key(plain), record.to_json()]
            )
        await self.refresh()
        return bool(known)

    async def refresh(self) -> None:
        """Reads all records. Unavailable while Redis is away; what was known stays known, and is
        trusted for as long as it would have been."""
        began = self._clock()
        with redis_errors():
            raw = await self._redis.hgetall(redis_keys.api_keys())
        self._take(raw, began)

    async def principal(self, plain: str) -> Principal:
        """Whose key this is. Unauthenticated when nobody's; Unavailable when Redis can't confirm
        it; DataLoss when its record can't be read."""
        digest = hash_api_key(plain[: MAX_KEY_CHARS + 1])
        known = self._known.get(digest)
        if known is None or self._clock() - known.confirmed > self._stale_s:
            known = await self._look_up(digest)
        if known is not None and known.record is None:
            raise DataLoss(
                "the record of this API key can't be read, so it is not taken; an operator sees "
                "it in `plinth keys list`, and `plinth keys create` makes another",
                reason="KEY_RECORD_UNREADABLE",
            )
        record = None if known is None else known.record
        if record is None or record.revoked or len(plain) > MAX_KEY_CHARS:
            raise Unauthenticated(
                "Incorrect API key provided. `plinth keys create` makes one.",
                reason="INVALID_API_KEY",
            )
        return record.principal()

    async def _look_up(self, digest: str) -> KeyEntry | None:
        """One record as Redis has it now. Unavailable at once while Redis was found away a moment
        ago, so that a crowd of requests does not wait for it in turn."""
        async with self._look_ups:
            began = self._clock()
            if began - self._misses.get(digest, -math.inf) < MISS_S:
                return None
            if began - self._away < AGAIN_S:
                raise self._unconfirmed("it did not a moment ago")
            try:
                with redis_errors():
                    async with asyncio.timeout(LOOK_UP_S):
                        raw = await self._redis.hget(redis_keys.api_keys(), digest)
            except Unavailable as error:
                self._away = self._clock()
                raise self._unconfirmed(error.message) from error
        if raw is None:
            self._known.pop(digest, None)
            if len(self._misses) >= MAX_MISSES:
                self._misses.clear()
            self._misses[digest] = began
            return None
        known = self._known[digest] = self._read(digest, _bytes(raw), began)
        return known

    def _unconfirmed(self, why: str) -> Unavailable:
        return Unavailable(
            f"Redis can't confirm this API key ({why}); a key that it confirmed is trusted for "
            f"{self._stale_s:g} s (gateway.keys_stale_s)",
            reason="KEY_UNCONFIRMED",
            retry_after_s=AGAIN_S,
        )

    def _take(self, found: Mapping[bytes | str, bytes | str], began: float) -> None:
        read = {_text(digest): _bytes(raw) for digest, raw in found.items()}
        self._known = {digest: self._read(digest, raw, began) for digest, raw in read.items()}
        self._misses = {d: at for d, at in self._misses.items() if d not in read}
        unreadable = {digest for digest, known in self._known.items() if known.record is None}
        self._told &= unreadable
        metrics.UNREADABLE_KEYS.set(len(unreadable))

    def _read(self, digest: str, raw: bytes, began: float) -> KeyEntry:
        before = self._known.get(digest)
        if before is not None and before.raw == raw:  # many keys are read often and change seldom
            return replace(before, confirmed=began)
        try:
            return KeyEntry(digest, raw, KeyRecord.from_json(raw), began)
        except DataLoss as error:
            if digest not in self._told:
                self._told.add(digest)
                _log.error(
                    "an API key's record can't be read; the key is refused, all others work",
                    record=KeyEntry(digest, raw, None, began).id,
                    reason=error.message,
                )
            return KeyEntry(digest, raw, None, began)


# KEYS[1] the hash of all keys; ARGV: hash of the key, its record.
_CLAIM = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 1 end
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""


# KEYS[1] the hash of all keys; ARGV: hash of the key, its record before, and after; hash and record
# of another key that has to be as it was. Sent twice, each says the same twice.
_SWAP = """
local now = redis.call('HGET', KEYS[1], ARGV[1])
if now == ARGV[3] then return 1 end
if now ~= ARGV[2] then return 0 end
if ARGV[4] and redis.call('HGET', KEYS[1], ARGV[4]) ~= ARGV[5] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

_REMOVE = """
local now = redis.call('HGET', KEYS[1], ARGV[1])
if not now then return 1 end
if now ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
"""


def _revoked(entry: KeyEntry) -> str:
    if entry.record is None:
        return unreadable_record(entry.id).to_json()
    return changed_json(entry.raw, revoked=True, revoked_unix_ms=now_ms())


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
