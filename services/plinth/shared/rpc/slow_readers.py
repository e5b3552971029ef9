"""A caller that doesn't read its stream is not waited for without end.

Between a handler and its caller stand HTTP/2's windows, and `context.write` waits while they are
full: that is the back-pressure. It is waited for so long and no longer; then the call ends with
RESOURCE_EXHAUSTED, which its caller finds behind what it has not read yet.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import aclosing
from typing import Any

import grpc

from plinth.shared.errors import ResourceExhausted
from plinth.shared.rpc.handlers import Context, Continuation, Handler, behaviour_of, build
from plinth.shared.rpc.status import hung_up
from plinth.shared.telemetry import counter, get_logger

SLOW_READER = "SLOW_READER"  # the reason of the error
SLOW_READERS = counter(
    "rpc_slow_readers_total", "Streams cut off since their caller did not read them.", ["method"]
)
_log = get_logger("plinth.rpc")


class SlowReadersInterceptor(grpc.aio.ServerInterceptor):
    """Goes innermost: it writes a handler's stream, each message within `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None or not handler.response_streaming:
            return handler
        inner = behaviour_of(handler)
        method = details.method.lstrip("/")

        async def write(request: Any, context: Context) -> None:
            responses = inner(request, context)
            del request
            if inspect.isawaitable(responses):
                await responses  # it writes by itself
                return
            async with aclosing(responses):
                async for response in responses:
                    try:
                        async with asyncio.timeout(self._limit_s):
                            await context.write(response)
                    except TimeoutError:
                        raise self._slow(method, context) from None
                    except grpc.aio.InternalError:
                        await hung_up()

        return build(handler, write)

    def _slow(self, method: str, context: Context) -> ResourceExhausted:
        SLOW_READERS.labels(method).inc()
        _log.warning("a slow reader was cut off", method=method, peer=context.peer())
        return ResourceExhausted(
            f"the stream was cut off: its caller read nothing of it for {self._limit_s:g} s",
            reason=SLOW_READER,
        )
