"""Who may call what: decided on a call's metadata alone, before a byte of its request is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from plinth.shared.errors import Internal, PermissionDenied, PlinthError, Unauthenticated
from plinth.shared.identity import Principal, current_call
from plinth.shared.rpc.auth import Authenticator, valid_request_id
from plinth.shared.rpc.error_mapping import crashed
from plinth.shared.rpc.handlers import Context, Continuation, Handler, wrap
from plinth.shared.rpc.status import REQUEST_ID_KEY, fail
from plinth.shared.telemetry import get_logger

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = (
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
)
_log = get_logger("plinth.rpc")


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
        except Exception as error:  # noqa: BLE001 - logged, and nobody gets in
            return crashed(error, method)
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
