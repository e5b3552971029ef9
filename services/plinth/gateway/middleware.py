"""Around every REST request: its id, its context, its place in the metrics and the log."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plinth.gateway import metrics
from plinth.gateway.preferences_api import PATHS
from plinth.gateway.probes import TARGETS
from plinth.shared import tracing
from plinth.shared.identity import call_scope, new_request_id
from plinth.shared.telemetry import get_logger

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KNOWN_PATHS = frozenset(
    {"/v1/models", "/v1/chat/completions", "/v1/completions", "/healthz", "/readyz", "/metrics"}
    | {TARGETS}
    | PATHS
)
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics", TARGETS})  # asked every few seconds
_log = get_logger("plinth.gateway")


class RequestMiddleware:
    """Around every request: its id, its context, its place in the metrics and the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        status = 499  # unless an answer begins

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        path = scope["path"] if scope["path"] in _KNOWN_PATHS else "other"
        with call_scope(request_id=request_id) as call, _traced(scope, path, request_id):
            try:
                await self._app(scope, receive, answer)
            finally:
                tenant = call.principal.tenant if call.principal is not None else ""
                tracing.note("http.response.status_code", status)
                if status >= 500:
                    tracing.failed(str(status))
                metrics.REQUESTS.labels(
                    "rest", path, str(status), metrics.tenant_label(tenant)
                ).inc()
                _log.debug("request", path=path, status=status, tenant=tenant)


def _traced(scope: Scope, path: str, request_id: str) -> AbstractContextManager[None]:
    """A span around the request, below the client's own if it brings one."""
    if path in _QUIET_PATHS:
        return nullcontext()
    return tracing.span(
        f"{scope['method']} {path}",
        kind="server",
        parent=Headers(scope=scope).get(tracing.TRACEPARENT, ""),
        attributes={
            "http.request.method": scope["method"],
            "http.route": path,
            "plinth.stage": "gateway",
            "plinth.request_id": request_id,
        },
    )
