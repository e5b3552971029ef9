"""A span around each call that was let in. Installed only where this process traces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from plinth.shared import tracing
from plinth.shared.identity import current_request_id
from plinth.shared.rpc.authorization import HEALTH, REFLECTION
from plinth.shared.rpc.handlers import Context, Continuation, Handler, metadata_of, wrap
from plinth.shared.rpc.outcomes import outcome

# Of the server, not of the caller: what OpenTelemetry's conventions count as a span's error.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """Below the caller's span. Health and reflection have none. stage: whose calls these are."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        method: str = details.method
        if handler is None or method.startswith((HEALTH, *REFLECTION)):
            return handler
        service, _, name = method.lstrip("/").partition("/")

        @asynccontextmanager
        async def layer(context: Context) -> AsyncIterator[None]:
            attributes = {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "plinth.stage": self._stage,
                "plinth.request_id": current_request_id(),
            }
            title, parent = f"{service}/{name}", _traceparent(context)
            with (
                tracing.span(title, kind="server", parent=parent, attributes=attributes),
                outcome(context, _note),
            ):
                yield

        return wrap(handler, layer)


def _note(code: str) -> None:
    tracing.note("rpc.grpc.status_code", code)
    if code in _FAULTS:
        tracing.failed(code)


def _traceparent(context: Context) -> str:
    found = [value for key, value in metadata_of(context) if key == tracing.TRACEPARENT]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""
