"""Ends the watches of a key that is revoked, or loses their scope, while they run.

A key is looked at when a call begins. Answers end within minutes, but a watch goes on for as long
as what it watches, over any number of connections: without a second look a revoked key would be
told of runs for days. Knows no method.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from plinth.gateway.keys.api_keys import REFRESH_S
from plinth.gateway.keys.keyring import Keyring
from plinth.shared.errors import DataLoss, PermissionDenied, PlinthError, Unauthenticated
from plinth.shared.rpc.auth import Metadata
from plinth.shared.rpc.handlers import Context, Continuation, Handler, metadata_of, wrap
from plinth.shared.rpc.status import fail
from plinth.shared.tasks import cancel_and_wait


class RevocationInterceptor(grpc.aio.ServerInterceptor):
    """Runs behind auth. scopes: what the watches need, by their full names."""

    def __init__(self, keyring: Keyring, scopes: Mapping[str, str]) -> None:
        self._keyring = keyring
        self._scopes = scopes

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None or self._keyring.off or details.method not in self._scopes:
            return handler
        scope = self._scopes[details.method]

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            watch = asyncio.current_task()
            assert watch is not None
            looking = asyncio.create_task(self._until_refused(metadata_of(context), scope))
            looking.add_done_callback(lambda done: None if done.cancelled() else watch.cancel())
            try:
                yield
            except asyncio.CancelledError:
                if not looking.done() or context.cancelled():
                    raise
                watch.uncancel()  # the call still needs its status
                await fail(context, looking.result())
            finally:
                await cancel_and_wait(looking)

        return wrap(handler, layer)

    async def _until_refused(self, metadata: Metadata, scope: str) -> PlinthError:
        """Why the key is not taken any more, or not for this. One that Redis can't confirm now was
        not revoked as far as anybody knows, and what is watched comes from Redis too."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                (await self._keyring(metadata)).require(scope)
            except (Unauthenticated, PermissionDenied, DataLoss) as error:
                return error
            except Exception:  # noqa: BLE001, S112 - as the keyring's turns, which log it
                continue
