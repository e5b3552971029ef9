"""What handlers and interceptors raise, as the status that the caller gets.

What gRPC raises when it can't write to a call (its InternalError) is the caller's hang-up, and not
a fault of anybody here; what a handler raises by mistake is one, whether its caller is there or
not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from plinth.shared.errors import DeadlineExceeded, Internal, PlinthError
from plinth.shared.identity import current_call, current_request_id
from plinth.shared.rpc.handlers import Context, Continuation, Handler, behaviour_of, build, wrap
from plinth.shared.rpc.status import fail, hung_up, raised_by_call
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.rpc")


class CrashInterceptor(grpc.aio.ServerInterceptor):
    """What the interceptors below raise by mistake, before the call or in its course, ends it with
    INTERNAL: gRPC itself would answer UNKNOWN with the exception's text, which nobody counts."""

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        method: str = details.method
        try:
            handler = await continuation(details)
        except Exception as error:  # noqa: BLE001 - logged; the caller learns no more
            return crashed(error, method)
        if handler is None:
            return None

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            try:
                yield
            except grpc.aio.AbortError:
                raise
            except grpc.aio.InternalError:
                if context.done():
                    raise  # of a call that ended with a crash, which nobody is there to hear of
                await hung_up()
            except Exception as error:  # noqa: BLE001 - logged; the caller learns no more
                _log.error("an interceptor crashed", method=method, exc_info=error)
                await fail(context, _internal())

        return wrap(handler, layer)


def crashed(error: Exception, method: str) -> Handler:
    """A handler that ends its call with INTERNAL."""

    async def end(_requests: Any, context: Context) -> None:
        _log.error("an interceptor crashed", method=method, exc_info=error)
        await fail(context, _internal())  # here, where the request id is known

    handler: Handler = grpc.stream_stream_rpc_method_handler(end)
    return handler


class ErrorsInterceptor(grpc.aio.ServerInterceptor):
    """Maps what a handler raises to a status, and holds unary calls to their deadline.

    Anything that is no PlinthError becomes INTERNAL without its text, which is logged instead.
    """

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method.lstrip("/")

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            call = current_call()
            left_s = None
            if call is not None and call.deadline is not None:
                left_s = call.deadline - time.monotonic()
            timeout = asyncio.timeout(left_s)
            try:
                async with timeout:
                    yield
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # the caller hung up, or the server ends
                # Something that the handler awaited was cancelled. gRPC would send no status, and
                # the caller would wait for ever. It did not cancel, so this is a fault of ours.
                _log.exception("something in the call was cancelled", method=method)
                await fail(context, _internal())
            except grpc.aio.InternalError:  # the handler said something to a caller that is gone
                await hung_up()
            except PlinthError as error:
                # Of a stage that this one called: its channel has tried again already.
                await fail(context, error, retried=raised_by_call(error) is not None)
            except Exception as error:  # noqa: BLE001 - logged; the caller learns no more
                if isinstance(error, TimeoutError) and timeout.expired():
                    await fail(context, DeadlineExceeded(f"{method} ran out of its time"))
                _log.exception("unexpected error", method=method)
                await fail(context, _internal())

        return wrap(_serialising(handler), layer)


def _serialising(handler: Handler) -> Handler:
    """`handler` with a unary response in bytes, so that one that is no message is its fault too.
    What a stream writes, gRPC serialises while the handler runs."""
    serialise = handler.response_serializer
    if handler.response_streaming or serialise is None:
        return handler
    inner = behaviour_of(handler)

    async def run(request: Any, context: Context) -> bytes:
        return bytes(serialise(await inner(request, context)))

    return build(handler, run, serializer=bytes)


def _internal() -> Internal:
    return Internal(
        f"internal error; the server's log has it under request id {current_request_id()}"
    )
