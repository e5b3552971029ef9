"""A stream's initial metadata go out by themselves and whole, before its first message.

gRPC takes them for sent only once the coroutine that sent them, or the first message with them, has
gone on. A handler that is cancelled before that (the server drains, a key is revoked, a reader is
too slow for the first message) and then ends the call with a status sends them twice: core refuses
(TOO_MANY_OPERATIONS), no status goes out, and the call stays open for as long as its client waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from plinth.shared.rpc.handlers import Context, Continuation, Handler, wrap


class FirstSendInterceptor(grpc.aio.ServerInterceptor):
    """Goes outermost: whoever ends a stream must have this context's word of what was sent."""

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None or not handler.response_streaming:
            return handler

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[Context]:
            yield cast("Context", _Context(context))

        return wrap(handler, layer)


class _Context:
    """A call's context, but for what it sends first."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def send_initial_metadata(self, metadata: Any) -> None:
        """As grpc.aio's; no window of the caller's holds it up."""
        self._sent = True
        sending = asyncio.ensure_future(self._context.send_initial_metadata(metadata))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait({sending})  # a moment; only then may the call be ended
            if not sending.cancelled():
                sending.exception()  # of a caller that is gone: nobody asks for it
            raise

    async def write(self, message: Any) -> None:
        """As grpc.aio's."""
        if not self._sent:
            await self.send_initial_metadata(())
        await self._context.write(message)
