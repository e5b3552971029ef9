"""What an administrator does with API keys: make, change, end and forget them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis

from plinth.gateway.keys.api_keys import KeyStore
from plinth.gateway.keys.entries import KeyEntry
from plinth.gateway.keys.first_key import FIRST_KEY_ID
from plinth.gateway.keys.records import KeyRecord, changed_json, new_record
from plinth.shared import redis_keys
from plinth.shared.api.etags import check_etag, etag_of
from plinth.shared.connection import redis_errors
from plinth.shared.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from plinth.shared.identity import REQUEST_ID, Principal
from plinth.shared.telemetry import get_logger

REPEATABLE_S = 3600
MAX_KEYS = 10_000  # each gateway holds them all, and reads them every few seconds

_log = get_logger("plinth.gateway")


class KeyManager:
    """Changes of keys, each one whole and by the record that it was decided on."""

    def __init__(self, redis: Redis, store: KeyStore, *, max_keys: int = MAX_KEYS) -> None:
        self._redis = redis
        self._store = store
        self._max_keys = max_keys

    async def create(
        self,
        wanted: KeyRecord,
        caller: Principal | None = None,
        credential: str = "",
        request_id: str = "",
    ) -> tuple[str, KeyEntry]:
        """(the secret, the key). `wanted`: without id and time, which it gets here. caller: None
        where it is made without the gateway. A request_id needs a caller.

        A repeated request makes no second key, and gets the same secret though that is kept
        nowhere: it is derived from the caller's own credential and a random number that Redis
        forgets after an hour. Neither of the two tells anything about it alone.

        ResourceExhausted when there are as many keys as there may be.
        """
        if not request_id or caller is None:
            id, secret = uuid.uuid4().hex[:12], _secret(secrets.token_bytes(32), "", "")
            await self._check_room(id)
        else:
            id = _id_for(caller, request_id)
            await self._check_room(id)
            nonce = await self._nonce(id, wanted, request_id)
            secret = _secret(nonce, credential, request_id)
        record = new_record(
            id, wanted.tenant, wanted.scopes, wanted.label, role=wanted.role, made_by=caller
        )
        entry = await self._store.add(secret, record)
        _log.info("an API key was made", key=id, tenant=wanted.tenant, by=caller and caller.key_id)
        return secret, entry

    async def get(self, key_id: str) -> KeyEntry:
        """NotFound when there is none of that id."""
        return (await self._store.found(key_id))[0]

    async def update(
        self, key_id: str, etag: str, change: Callable[[KeyEntry], KeyRecord], caller: Principal
    ) -> KeyEntry:
        """The key with scopes, role and label of what `change` makes of it. NotFound; Aborted for
        another etag; FailedPrecondition for a key that is revoked, or whose record can't be read,
        and where nobody could manage keys any more."""
        while True:
            entry = await self.get(key_id)
            check_etag(etag, etag_of(entry.raw), f"key {key_id!r}")
            if entry.record is None:
                raise FailedPrecondition(
                    f"the record of key {key_id!r} can't be read: revoke it, and make another",
                    reason="KEY_RECORD_UNREADABLE",
                )
            if entry.record.revoked:
                raise FailedPrecondition(
                    f"key {key_id!r} is revoked, for good; make another", reason="KEY_REVOKED"
                )
            wanted = change(entry)
            stays = None if "admin" in wanted.all_scopes else self._administrator_beside([entry])
            raw = changed_json(entry.raw, **_changes(entry.record, wanted))
            if await self._store.swap(entry, raw, stays):
                scopes = sorted(wanted.all_scopes)
                _log.info("an API key was changed", key=key_id, scopes=scopes, by=caller.key_id)
                return await self.get(key_id)

    async def revoke(self, key_id: str, caller: Principal) -> KeyEntry:
        """NotFound when there is none of that id; FailedPrecondition where nobody could manage
        keys any more. Idempotent."""
        await self._store.revoke(key_id, self._administrator_beside)
        _log.info("an API key was revoked", key=key_id, by=caller.key_id)
        return await self.get(key_id)

    async def delete(self, key_id: str, etag: str, caller: Principal) -> None:
        """Forgets a revoked key. NotFound; Aborted for another etag; FailedPrecondition for one
        that is not revoked, and for the platform's first."""
        while True:
            entry = await self.get(key_id)
            check_etag(etag, etag_of(entry.raw), f"key {key_id!r}")
            if not entry.revoked:
                raise FailedPrecondition(
                    f"key {key_id!r} is not revoked: revoke it first", reason="KEY_NOT_REVOKED"
                )
            if key_id == FIRST_KEY_ID:
                raise FailedPrecondition(
                    "the platform's first key stays on record, revoked: its secret lies in a file "
                    "or a setting, and a gateway would take it again",
                    reason="FIRST_KEY",
                )
            with redis_errors():
                await self._redis.delete(_creation(key_id))
            if await self._store.remove(entry):
                _log.info("a revoked API key was deleted", key=key_id, by=caller.key_id)
                return

    def _administrator_beside(self, entries: Sequence[KeyEntry]) -> KeyEntry | None:
        """A key that can still manage keys when these can't, if one of them can: it has to be as it
        is when they change, or two administrators who revoke each other would leave none."""
        if not any(entry.administers for entry in entries):
            return None
        for other in self._store.known:
            if other.administers and other.id != entries[0].id:
                return other
        raise FailedPrecondition(
            f"key {entries[0].id!r} is the last one with the scope 'admin', without which nobody "
            "can manage keys: make another one first (`plinth keys create --scope admin`)",
            reason="LAST_ADMIN_KEY",
        )

    async def _check_room(self, key_id: str) -> None:
        """For one key more, unless it is there already."""
        with redis_errors():
            count = await self._redis.hlen(redis_keys.api_keys())
        if count < self._max_keys:
            return
        try:
            await self._store.found(key_id)
        except NotFound:
            raise ResourceExhausted(
                f"there are {count:,} API keys, and {self._max_keys:,} are the most: delete some "
                "that are revoked (`plinth keys list --filter 'state = REVOKED'` lists them)",
                reason="TOO_MANY_KEYS",
            ) from None

    async def _nonce(self, key_id: str, wanted: KeyRecord, request_id: str) -> bytes:
        """What the secret of this request is derived from, the same for an hour."""
        name, asked = _creation(key_id), _asked(wanted)
        kept = await self._kept(name)
        if not kept:
            try:
                await self._store.found(key_id)
            except NotFound:
                fresh: dict[str, str | bytes] = {"nonce": secrets.token_bytes(32), "asked": asked}
                with redis_errors():
                    async with self._redis.pipeline(transaction=True) as pipe:
                        for field, value in fresh.items():
                            pipe.hsetnx(name, field, value)
                        pipe.expire(name, REPEATABLE_S, nx=True)
                        await pipe.execute()
                kept = await self._kept(name)
        if not kept or kept[b"asked"] != asked.encode():
            why = "was another one" if kept else "was made more than an hour ago"
            raise AlreadyExists(
                f"the request {request_id!r} {why} and made the key {key_id!r}, whose secret can't "
                "be shown again; send a new request_id",
                reason="REQUEST_ID_USED",
                field="request_id",
                metadata={"key": f"keys/{key_id}"},
            )
        return kept[b"nonce"]

    async def _kept(self, name: str) -> dict[bytes, bytes]:
        found: Any = self._redis.hgetall(name)
        with redis_errors():
            kept: dict[bytes, bytes] = await found
        return kept


def check_request_id(request_id: str) -> None:
    """InvalidArgument for what is none; an empty one is fine."""
    if request_id and not REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument(
            "request_id: 1 to 128 letters, digits, '.', '_', ':' or '-'; a UUID is best",
            reason="REQUEST_ID",
            field="request_id",
        )


def _changes(record: KeyRecord, wanted: KeyRecord) -> dict[str, Any]:
    """Fields to be written: what is as it was stays as a newer version may have written it."""
    changes: dict[str, Any] = {}
    if wanted.scopes != record.scopes:
        changes["scopes"] = sorted(wanted.scopes)
    if wanted.role != record.role:
        changes["role"] = wanted.role
    if wanted.label != record.label:
        changes["label"] = wanted.label
    return changes


def _id_for(caller: Principal, request_id: str) -> str:
    whole = "\0".join(("plinth key id", caller.tenant, caller.key_id, request_id))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _creation(key_id: str) -> str:
    return redis_keys.key_creation(hashlib.sha256(key_id.encode()).hexdigest()[:32])


def _asked(wanted: KeyRecord) -> str:
    """The same for the same wish."""
    return etag_of(wanted.tenant, ",".join(sorted(wanted.scopes)), wanted.role, wanted.label)


def _secret(nonce: bytes, credential: str, request_id: str) -> str:
    """256 bits as `identity.new_api_key` makes them."""
    said = b"\0".join((b"plinth api key", credential.encode(), request_id.encode()))
    digest = hmac.new(nonce, said, hashlib.sha256).digest()
    return "plinth-" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
