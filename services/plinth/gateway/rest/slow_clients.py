"""REST clients that don't read their answers.

The server's `send` waits while a connection's buffer is full, and with it everything behind: the
answer, the shards, the memory. It is waited for so long and no longer. Then the connection is
broken, which the application sees as a client that hung up; a stream of events is told why, if it
takes anything within a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plinth.gateway import metrics
from plinth.gateway.openai.sse import data
from plinth.gateway.rest import outcome
from plinth.shared.errors import ResourceExhausted, to_openai_body
from plinth.shared.telemetry import get_logger

SLOW_CLIENT = "SLOW_CLIENT"  # the reason of the error
PART_BYTES = 64 << 10  # of a body that is sent whole: the time is that of a part
FAREWELL_S = 1.0
_log = get_logger("plinth.gateway")


class SlowClients:
    """Around the whole application, next to the server: `send` must be the server's own."""

    def __init__(self, app: ASGIApp, limit_s: float) -> None:
        """limit_s: how long one part of an answer may take to leave."""
        self._app = app
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        streams = cut = False

        async def bounded(message: Message) -> None:
            nonlocal streams, cut
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                streams = kind.startswith("text/event-stream")
            for part in (message,) if streams else _parts(message):
                if cut:
                    return
                try:
                    async with asyncio.timeout(self._limit_s):
                        await send(part)
                except TimeoutError:
                    if not cut:
                        cut = True
                        await self._cut_off(scope, send, streams=streams)

        await self._app(scope, receive, bounded)

    async def _cut_off(self, scope: Scope, send: Send, *, streams: bool) -> None:
        metrics.SLOW_CLIENTS.inc()
        if (ends := outcome.current.get()) is not None:
            ends.code = "499"  # it was the client that left its answer
        error = ResourceExhausted(
            f"the answer was cut off: for {self._limit_s:g} s the client did not read it",
            reason=SLOW_CLIENT,
        )
        _log.warning("a slow client was cut off", path=scope["path"], client=scope.get("client"))
        try:
            if streams:
                body = data(to_openai_body(error))
                async with asyncio.timeout(FAREWELL_S):
                    await send({"type": "http.response.body", "body": body, "more_body": False})
        except TimeoutError:
            pass
        finally:
            # Closing it would wait for the client to read what is left. uvicorn has no word for
            # this; `send` is a method of the exchange, which has the transport.
            transport = getattr(getattr(send, "__self__", None), "transport", None)
            if transport is not None:
                transport.abort()


def _parts(message: Message) -> Iterator[Message]:
    body = message.get("body", b"")
    if len(body) <= PART_BYTES:
        yield message
        return
    for at in range(0, len(body), PART_BYTES):
        last = at + PART_BYTES >= len(body)
        more = message.get("more_body", False) or not last
        yield {**message, "body": body[at : at + PART_BYTES], "more_body": more}
