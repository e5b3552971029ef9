"""What every call passes, outermost first: request id → metrics → crashes → auth → validation →
errors → slow readers.

Auth decides on the metadata alone, before a byte of the request is read. A layer that refuses a
call ends it itself; what the handler raises is mapped in the innermost layer but one, and what goes
wrong in any other in the one for crashes. Knows no method.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from plinth.shared.errors import Unauthenticated
from plinth.shared.identity import CallContext, enter_call, new_request_id
from plinth.shared.rpc.auth import Authenticator, valid_request_id
from plinth.shared.rpc.authorization import HEALTH, AuthInterceptor
from plinth.shared.rpc.error_mapping import CrashInterceptor, ErrorsInterceptor
from plinth.shared.rpc.handlers import Context, Continuation, Handler, metadata_of, wrap
from plinth.shared.rpc.outcomes import MetricsInterceptor
from plinth.shared.rpc.slow_readers import SlowReadersInterceptor
from plinth.shared.rpc.status import REQUEST_ID_KEY
from plinth.shared.rpc.validation import ValidationInterceptor, Validator
from plinth.shared.rpc.wire import Bounds


class RequestIdInterceptor(grpc.aio.ServerInterceptor):
    """Opens the call's context: request id and deadline. `default_deadline_s` is what a call with
    a unary response gets when its client set none; streams may go on, and so may what is
    `unhurried` (full method names)."""

    def __init__(self, default_deadline_s: float, unhurried: Collection[str] = ()) -> None:
        self._default_s = default_deadline_s
        self._unhurried = unhurried

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None:
            return None
        unbounded = (
            handler.response_streaming
            or details.method.startswith(HEALTH)
            or details.method in self._unhurried
        )

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


def interceptors(
    *,
    methods: frozenset[str],
    scopes: Mapping[str, str],
    validators: Mapping[str, Validator],
    authenticate: Authenticator,
    default_deadline_s: float,
    unhurried: Collection[str] = (),
    slow_reader_s: float,
    bounds: Bounds | None = None,
    counting: Sequence[grpc.aio.ServerInterceptor] = (),
    admitted: Sequence[grpc.aio.ServerInterceptor] = (),
) -> list[grpc.aio.ServerInterceptor]:
    """All seven, in the order in which a call passes them. More of them: `counting`, which see how
    every call ends, and `admitted`, behind auth. bounds: of each request message."""
    return [
        RequestIdInterceptor(default_deadline_s, unhurried),
        MetricsInterceptor(methods),
        *counting,
        CrashInterceptor(),
        AuthInterceptor(authenticate, scopes),
        *admitted,
        ValidationInterceptor(validators, bounds),
        ErrorsInterceptor(),
        SlowReadersInterceptor(slow_reader_s),
    ]
