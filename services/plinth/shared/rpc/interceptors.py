"""What every call passes, outermost first: request id → metrics → auth → validation → errors →
slow readers.

Auth decides on the metadata alone, before a byte of the request is read. A layer that refuses a
call ends it itself; what the handler raises is mapped in the innermost layer but one. Knows no
method.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from plinth.shared.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    PlinthError,
    Unauthenticated,
)
from plinth.shared.identity import (
    CallContext,
    Principal,
    current_call,
    current_request_id,
    enter_call,
    new_request_id,
)
from plinth.shared.rpc.auth import Authenticator, valid_request_id
from plinth.shared.rpc.handlers import Context, Continuation, Handler, behaviour_of, build, wrap
from plinth.shared.rpc.slow_readers import SlowReadersInterceptor
from plinth.shared.rpc.status import REQUEST_ID_KEY, fail, from_rpc_error
from plinth.shared.telemetry import counter, gauge, get_logger, histogram

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/"

Validator = Callable[[Any], None]

_log = get_logger("plinth.rpc")
REQUESTS = counter("rpc_requests_total", "Calls served, by method and code.", ["method", "code"])
IN_FLIGHT = gauge("rpc_in_flight", "Calls being served.", ["method"])
DURATION = histogram(
    "rpc_duration_seconds",
    "Time from the call's arrival to its end; for streams, to the last message.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)


class RequestIdInterceptor(grpc.aio.ServerInterceptor):
    """Opens the call's context: request id and deadline. `default_deadline_s` is what a call with
    a unary response gets when its client set none; streams may go on."""

    def __init__(self, default_deadline_s: float) -> None:
        self._default_s = default_deadline_s

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None:
            return None
        unbounded = handler.response_streaming or details.method.startswith(HEALTH)

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            call = CallContext(_request_id(context), deadline=self._deadline(context, unbounded))
            enter_call(call)
            context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
            try:
                yield
            finally:
                call.ended = True

        return wrap(handler, layer)

    def _deadline(self, context: Context, unbounded: bool) -> float | None:
        remaining = context.time_remaining()
        if remaining is None:
            return None if unbounded else time.monotonic() + self._default_s
        return time.monotonic() + remaining


def _request_id(context: Context) -> str:
    """The caller's, or a new one: a malformed one is refused later, in auth, under a new one."""
    try:
        given = valid_request_id(metadata_of(context), REQUEST_ID_KEY)
    except Unauthenticated:
        given = None
    return given or new_request_id()


def metadata_of(context: Context) -> list[tuple[str, str | bytes]]:
    """What came with the call."""
    return [(pair[0], pair[1]) for pair in context.invocation_metadata() or ()]


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Counts, times and gauges. Methods that don't exist share one label."""

    def __init__(self, methods: frozenset[str]) -> None:
        self._methods = methods

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method.lstrip("/") if details.method in self._methods else "unknown"

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            started = time.perf_counter()
            cancelled = False
            IN_FLIGHT.labels(method).inc()
            try:
                yield
            except asyncio.CancelledError:
                cancelled = True
                raise
            finally:
                IN_FLIGHT.labels(method).dec()
                DURATION.labels(method).observe(time.perf_counter() - started)
                REQUESTS.labels(method, code_of(context, cancelled)).inc()

        return wrap(handler, layer)


def code_of(context: Context, cancelled: bool) -> str:
    """The name of the status that a call ends with."""
    if cancelled:
        remaining = context.time_remaining()
        return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
    code: Any = context.code()
    if not code:
        return "OK"
    return str(code.name) if isinstance(code, grpc.StatusCode) else _CODE_NAMES[code]


_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets nothing but health through without a credential.

    scopes: the scope that each full method name needs; "" is any principal. Reflection
    needs the credential only.
    """

    def __init__(self, authenticate: Authenticator, scopes: Mapping[str, str]) -> None:
        self._authenticate = authenticate
        self._scopes = scopes

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        method: str = details.method
        if method.startswith(HEALTH):
            return await continuation(details)
        try:
            principal = await self._admit(method, details.invocation_metadata or ())
        except PlinthError as error:
            return _refusal(error, method)
        except Exception:  # noqa: BLE001 - logged, and nobody gets in
            _log.exception("the authenticator failed", method=method)
            return _refusal(_internal(), method)
        handler = await continuation(details)
        if handler is None:
            return None
        if method not in self._scopes and not method.startswith(REFLECTION):
            return _refusal(
                PermissionDenied(f"{method} has no scope, so nobody may call it"), method
            )

        @asynccontextmanager
        async def layer(_context: Context) -> AsyncIterator[None]:
            call = current_call()
            if call is None:
                raise Internal("the request-id interceptor must run before auth")
            call.principal = principal
            yield

        return wrap(handler, layer)

    async def _admit(self, method: str, metadata: Sequence[Any]) -> Principal | None:
        pairs = [(pair[0], pair[1]) for pair in metadata]
        valid_request_id(pairs, REQUEST_ID_KEY)
        principal = await self._authenticate(pairs)
        scope = self._scopes.get(method)
        if scope is None:
            return principal
        if principal is None:
            raise Unauthenticated(
                "the call names no principal (x-plinth-principal)", reason="PRINCIPAL_MISSING"
            )
        if scope:
            principal.require(scope)
        return principal


def _refusal(error: PlinthError, method: str) -> Handler:
    """Ends any kind of call without reading its messages."""

    async def refuse(_requests: Any, context: Context) -> None:
        _log.info("call refused", method=method, peer=context.peer(), reason=error.reason)
        await fail(context, error)

    handler: Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return handler


@dataclass(frozen=True)
class _Malformed:
    """Stands for a request message that is not what its method takes."""

    message: str


class ValidationInterceptor(grpc.aio.ServerInterceptor):
    """Refuses bytes that are no message of the method's type, and what a validator rejects.

    validators: by full method name, a function that raises InvalidArgument for a bad message.
    """

    def __init__(self, validators: Mapping[str, Validator]) -> None:
        self._validators = validators

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None:
            return None
        validator = self._validators.get(details.method)

        async def check(request: Any, context: Context) -> Any:
            try:
                if isinstance(request, _Malformed):
                    raise InvalidArgument(request.message, reason="MESSAGE_MALFORMED")
                if validator is not None:
                    validator(request)
            except PlinthError as error:
                await fail(context, error)
            return request

        @asynccontextmanager
        async def layer(_context: Context) -> AsyncIterator[None]:
            yield

        return _lenient(wrap(handler, layer, check), details.method)


def _lenient(handler: Handler, method: str) -> Handler:
    """Deserialises to _Malformed instead of raising, which gRPC would answer with INTERNAL."""
    strict = handler.request_deserializer
    if strict is None:
        return handler

    def deserialize(data: bytes) -> Any:
        try:
            return strict(data)
        except Exception as error:  # noqa: BLE001 - whatever a parser raises on a client's bytes
            _log.info("malformed message", method=method, error=type(error).__name__)
            return _Malformed(f"the message is no valid request of {method}")

    return build(handler, behaviour_of(handler), deserialize)


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
                # the caller would wait for ever.
                await fail(context, Cancelled(f"{method} was cancelled by the server"))
            except PlinthError as error:
                await fail(context, error)
            except grpc.aio.AioRpcError as error:
                # A stage that this one called: its typed error goes on to the caller.
                await fail(context, from_rpc_error(error), retried=True)
            except Exception as error:  # noqa: BLE001 - logged; the caller learns no more
                if isinstance(error, TimeoutError) and timeout.expired():
                    await fail(context, DeadlineExceeded(f"{method} ran out of its time"))
                _log.exception("unexpected error", method=method)
                await fail(context, _internal())

        return wrap(handler, layer)


def _internal() -> Internal:
    return Internal(
        f"internal error; the server's log has it under request id {current_request_id()}"
    )


def interceptors(
    *,
    methods: frozenset[str],
    scopes: Mapping[str, str],
    validators: Mapping[str, Validator],
    authenticate: Authenticator,
    default_deadline_s: float,
    slow_reader_s: float,
    admitted: Sequence[grpc.aio.ServerInterceptor] = (),
) -> list[grpc.aio.ServerInterceptor]:
    """All six, in the order in which a call passes them; `admitted`: more of them, behind auth."""
    return [
        RequestIdInterceptor(default_deadline_s),
        MetricsInterceptor(methods),
        AuthInterceptor(authenticate, scopes),
        *admitted,
        ValidationInterceptor(validators),
        ErrorsInterceptor(),
        SlowReadersInterceptor(slow_reader_s),
    ]
