"""Who calls, by REST and gRPC: credentials become a principal, by keys that are kept fresh here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from plinth.gateway.keys.api_keys import AGAIN_S, REFRESH_S, KeyStore
from plinth.gateway.keys.first_key import ensure_first_key
from plinth.shared.errors import Unauthenticated, described
from plinth.shared.identity import Principal
from plinth.shared.settings import Settings
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.gateway")


class Keyring:
    """Turns the credentials of a call into a principal, for REST and gRPC alike."""

    def __init__(self, store: KeyStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self.off = settings.gateway.auth == "off"
        self._trouble = self._first_trouble = ""  # of the last turn
        self._first_known = False

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

    async def open(self) -> None:
        """The first turn, so that keys, the first one too, are known before the first request.
        Raises nothing: what goes wrong is tried again by `keep_fresh`."""
        await self._turn()

    async def keep_fresh(self) -> None:
        """Until cancelled: records are read again and again, and the first key exists. Nothing
        that goes wrong in one turn ends the turns, nor does one of the two hold up the other."""
        while True:
            await asyncio.sleep(AGAIN_S if self._trouble else REFRESH_S)
            await self._turn()

    async def _turn(self) -> None:
        now = await _trouble(self._store.refresh())
        if now and now != self._trouble:  # changes are logged, not each turn
            _log.warning(
                "API keys can't be read; each is trusted for gateway.keys_stale_s after Redis "
                "last confirmed it",
                reason=now,
            )
        elif self._trouble and not now:
            _log.info("API keys can be read again")
        self._trouble = now
        # A Redis that lost everything has no key; without the first one again nobody could get in.
        if now or self.off or (self._first_known and self._store.has_keys):
            return
        now = await _trouble(ensure_first_key(self._settings, self._store))
        if now and now != self._first_trouble:
            _log.error("the first API key can't be made; goes on trying", reason=now)
        self._first_trouble, self._first_known = now, not now


async def _trouble(work: Awaitable[None]) -> str:
    """What went wrong with it; empty when nothing did."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - the end of the turns would be the end of revoking
        return described(error)
    return ""
