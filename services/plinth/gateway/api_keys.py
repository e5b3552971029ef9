"""API keys: only their SHA-256 is kept, with tenant and scopes, in one Redis hash.

All records are held in memory and read again every few seconds, so a known key costs no round
trip and works while Redis is away; a revoked one stops within that time. Revoking leaves the
record with a mark, so that nothing brings the key back by accident.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    PlinthError,
    Unauthenticated,
    Unavailable,
)
from plinth.shared.identity import SCOPES, Principal, create_secret, hash_api_key, new_api_key
from plinth.shared.settings import Settings
from plinth.shared.telemetry import get_logger

REFRESH_S = 5.0
MISS_S = 2.0  # an unknown key is not asked for again so soon
MAX_MISSES = 10_000
MAX_KEY_CHARS = 512
FIRST_KEY_FILE = "api-key"
FIRST_KEY_ID = "first"

_log = get_logger("plinth.gateway")


@dataclass(frozen=True)
class KeyRecord:
    """What is kept of a key."""

    key_id: str
    tenant: str
    scopes: frozenset[str]
    label: str
    created_unix_ms: int
    revoked: bool = False

    def principal(self) -> Principal:
        return Principal(self.tenant, self.key_id, self.scopes)

    def to_json(self) -> str:
        fields = {**self.__dict__, "scopes": sorted(self.scopes)}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes | str) -> KeyRecord:
        try:
            fields = json.loads(text)
            return cls(**{**fields, "scopes": frozenset(fields["scopes"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataLoss("an API key's record in Redis can't be read") from error


class KeyStore:
    """Keys as the gateway checks them and the CLI manages them."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: dict[str, KeyRecord] = {}
        self._misses: dict[str, float] = {}

    async def create(
        self, tenant: str, scopes: Collection[str], label: str = ""
    ) -> tuple[str, KeyRecord]:
        """(the key, shown this once; its record). InvalidArgument for a scope that isn't one."""
        unknown = sorted(set(scopes) - SCOPES)
        if unknown or not scopes:
            raise InvalidArgument(
                f"scopes: {', '.join(unknown) or 'none given'}; "
                f"choose from {', '.join(sorted(SCOPES))}",
                field="scopes",
            )
        redis_keys.check_part(tenant, "tenant")
        if len(label) > 200 or not (label.isprintable() or not label):
            raise InvalidArgument("label: up to 200 printable characters", field="label")
        plain, digest = new_api_key()
        record = _record(uuid.uuid4().hex[:12], tenant, scopes, label)
        with redis_errors():
            await self._redis.hset(redis_keys.api_keys(), digest, record.to_json())
        self._known[digest] = record
        return plain, record

    async def list(self) -> list[KeyRecord]:
        """All keys, oldest first, revoked ones too."""
        await self.refresh()
        return sorted(self._known.values(), key=lambda record: record.created_unix_ms)

    async def revoke(self, key_id: str) -> KeyRecord:
        """Takes a key away for good. NotFound when there is none of that id. Where a backup was
        restored beside a new first key, both have its id, and both go."""
        await self.refresh()
        gone: KeyRecord | None = None
        for digest, record in list(self._known.items()):
            if record.key_id == key_id:
                gone = KeyRecord(**{**record.__dict__, "revoked": True})
                with redis_errors():
                    await self._redis.hset(redis_keys.api_keys(), digest, gone.to_json())
                self._known[digest] = gone
        if gone is None:
            raise NotFound(f"no API key has the id {key_id[:64]!r}", reason="KEY_NOT_FOUND")
        return gone

    async def ensure(self, plain: str, record: KeyRecord) -> None:
        """Makes `plain` known unless it is, revoked ones included."""
        with redis_errors():
            await self._redis.hsetnx(redis_keys.api_keys(), hash_api_key(plain), record.to_json())
        await self.refresh()

    async def refresh(self) -> None:
        """Reads all records. Unavailable while Redis is away; what was known stays known."""
        with redis_errors():
            raw = await self._redis.hgetall(redis_keys.api_keys())
        self._known = {_text(digest): KeyRecord.from_json(record) for digest, record in raw.items()}

    async def principal(self, plain: str) -> Principal:
        """Whose key this is. Unauthenticated when nobody's; Unavailable when that isn't known."""
        digest = hash_api_key(plain[: MAX_KEY_CHARS + 1])
        record = self._known.get(digest) or await self._look_up(digest)
        if record is None or record.revoked or len(plain) > MAX_KEY_CHARS:
            raise Unauthenticated(
                "Incorrect API key provided. `plinth keys create` makes one.",
                reason="INVALID_API_KEY",
            )
        return record.principal()

    async def _look_up(self, digest: str) -> KeyRecord | None:
        now = time.monotonic()
        if now - self._misses.get(digest, -MISS_S) < MISS_S:
            return None
        with redis_errors():
            raw = await self._redis.hget(redis_keys.api_keys(), digest)
        if raw is not None:
            self._known[digest] = KeyRecord.from_json(raw)
            return self._known[digest]
        if len(self._misses) >= MAX_MISSES:
            self._misses.clear()
        self._misses[digest] = now
        return None


class Keyring:
    """Turns the credentials of a call into a principal, at both doors."""

    def __init__(self, store: KeyStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self.off = settings.gateway.auth == "off"

    async def bearer(self, header: str | None) -> Principal:
        """`header`: the value of "authorization"."""
        if self.off:
            return Principal("local", "local", frozenset({"admin"}))
        if not header:
            raise Unauthenticated(
                "You didn't provide an API key. Send it as `Authorization: Bearer <key>`.",
                reason="MISSING_API_KEY",
            )
        kind, _, plain = header.partition(" ")
        if kind.lower() != "bearer" or not plain.strip():
            raise Unauthenticated(
                "The authorization header must read `Bearer <key>`.", reason="INVALID_API_KEY"
            )
        return await self._store.principal(plain.strip())

    async def __call__(self, metadata: Iterable[tuple[str, str | bytes]]) -> Principal:
        """The gRPC server's Authenticator."""
        values = [value for name, value in metadata if name.lower() == "authorization"]
        if len(values) > 1:
            raise Unauthenticated("authorization came more than once", reason="INVALID_API_KEY")
        value = values[0] if values else None
        return await self.bearer(value.decode("latin-1") if isinstance(value, bytes) else value)

    async def keep_fresh(self) -> None:
        """Until cancelled: the first key exists, and records are re-read."""
        first_known = self.off
        while True:
            try:
                if not first_known:
                    await ensure_first_key(self._settings, self._store)
                    first_known = True
                await self._store.refresh()
            except Unavailable as error:
                _log.warning("API keys can't be read; known ones still work", reason=str(error))
            except PlinthError:
                _log.exception("API keys can't be read")
            await asyncio.sleep(REFRESH_S)


async def ensure_first_key(settings: Settings, store: KeyStore) -> str:
    """The key in <data_dir>/secrets/api-key (0600), which is made at the first start: admin."""
    path = settings.ensure_secrets_dir() / FIRST_KEY_FILE
    if not path.exists():
        create_secret(path, new_api_key()[0])
    plain = path.read_text("ascii").strip()
    await store.ensure(plain, _record(FIRST_KEY_ID, "default", {"admin"}, "made at first start"))
    return plain


def _record(key_id: str, tenant: str, scopes: Collection[str], label: str) -> KeyRecord:
    return KeyRecord(key_id, tenant, frozenset(scopes), label, time.time_ns() // 1_000_000)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
