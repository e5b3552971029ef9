"""Around every REST request: its id, its context, its place in the metrics and the log.

The outermost handler, outside of Starlette's own: whatever a request meets on its way, it ends in
an answer with its id, or in a connection that breaks, and is counted as what it was.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext

from sse_starlette.sse import SendTimeoutError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plinth.gateway import metrics
from plinth.gateway.preferences.routes import PATHS
from plinth.gateway.rest import outcome
from plinth.gateway.rest.error_handlers import answer_to
from plinth.gateway.rest.http_protocol import REFUSED_STATUS
from plinth.gateway.rest.probes import ALIASES, TARGETS
from plinth.shared import tracing
from plinth.shared.errors import Unavailable
from plinth.shared.identity import REQUEST_ID, call_scope, new_request_id
from plinth.shared.telemetry import get_logger

_KNOWN_PATHS = frozenset(
    {"/v1/models", "/v1/chat/completions", "/v1/completions", "/healthz", "/readyz", "/metrics"}
    | {TARGETS}
    | PATHS
)
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics", TARGETS})  # asked every few seconds
_GONE = 499  # nginx's status for a client that hung up
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
        request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        asked = ALIASES.get(scope["path"], scope["path"])
        path = asked if asked in _KNOWN_PATHS else "other"
        answer = _Answer(send, request_id)
        with call_scope(request_id=request_id) as call, _traced(scope, path, request_id):
            token = outcome.current.set(answer.outcome)
            try:
                await self._run(scope, receive, answer)
            finally:
                outcome.current.reset(token)
                code = answer.code(scope)
                tenant = call.principal.tenant if call.principal is not None else ""
                tracing.note("http.response.status_code", answer.status or _GONE)
                if code.startswith(("5", "STREAM_")):
                    tracing.failed(code)
                metrics.REQUESTS.labels("rest", path, code, metrics.tenant_label(tenant)).inc()
                _log.debug("request", path=path, code=code, tenant=tenant)

    async def _run(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                await _crashed(error, scope, receive, answer)  # something in it was cancelled
                return
            # uvicorn cancels what outlasts a drain; a client's hang-up is no cancellation.
            await _end(Unavailable("the gateway is stopping"), scope, receive, answer)
            raise
        except Exception as error:  # noqa: BLE001 - logged; the client learns no more
            if _client_gone(error):
                _log.info("the client is gone", error=type(error).__name__)
                return
            await _crashed(error, scope, receive, answer)


async def _crashed(error: BaseException, scope: Scope, receive: Receive, answer: _Answer) -> None:
    _log.error("a request crashed", path=scope["path"][:200], exc_info=error)
    if answer.complete and answer.status >= 500:
        return  # Starlette has answered, by our handler, and raised on
    await _end(error, scope, receive, answer)


async def _end(error: BaseException, scope: Scope, receive: Receive, answer: _Answer) -> None:
    """An answer that has begun can't be taken back: it breaks off."""
    if answer.status:
        answer.outcome.code = outcome.stream_code(error)
        return
    response: Response = answer_to(error)
    await response(scope, receive, answer.send)


class _Answer:
    """What is sent to the client, with the request's id. status: 0 until it begins."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        self.complete = False
        self.outcome = outcome.RequestOutcome()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True

    def code(self, scope: Scope) -> str:
        """The label of the request in the metrics."""
        if self.outcome.code:
            return self.outcome.code
        if self.complete:
            return str(self.status)
        refused = scope.get("state", {}).get(REFUSED_STATUS)
        return str(refused or _GONE)


def _client_gone(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_client_gone, error.exceptions))
    return isinstance(error, ClientDisconnect | SendTimeoutError)


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
