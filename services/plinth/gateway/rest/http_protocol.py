"""HTTP/1.1 as uvicorn parses it, within bounds that uvicorn has none for.

Bounded are the bytes and the number of headers (trailers too), the time that a request's head and
its body may take, what is read at a time, how long a client may leave an answer unread, and the
number of connections: where there are too many, the one goes first that has waited longest for
its client. Refusals have a body of OpenAI's shape and a request id, and are counted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from plinth.gateway import metrics
from plinth.shared.identity import new_request_id
from plinth.shared.settings_sections import GatewaySettings

REFUSED_STATUS = "plinth.refused_status"  # in the state of a scope that was refused while it ran
MAX_PIPELINED = 16
# Read at a time: the parser goes through it in one turn of the loop, and a hostile chunked body
# has a callback for each of its bytes.
READ_BYTES = 16 * 1024
UNREAD_S = 60.0  # a client that leaves the end of an answer unread for so long is gone
_LINGER_S = 2.0  # in which a refused client may finish sending, so that it sees the refusal
_read_buffer = memoryview(bytearray(READ_BYTES))  # of all: emptied as soon as it was filled


class Connections:
    """Those of one server. waiting: the ones that no request is being answered on, the longest
    waiting first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: dict[HttpProtocol, None] = {}

    def make_room(self, count: int) -> bool:
        """Whether one more than `count` may stay; closes one that waits for that."""
        if count <= self.limit:
            return True
        if not self.waiting:
            metrics.CONNECTIONS_REFUSED.labels("full").inc()
            return False
        oldest = next(iter(self.waiting))
        metrics.CONNECTIONS_REFUSED.labels("evicted").inc()
        del self.waiting[oldest]
        oldest.transport.abort()
        return True


class HttpProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: GatewaySettings,
        siblings: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._limits = limits
        self._siblings = siblings
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: tuple[int, str, str] | None = None  # status, code, message
        self._refused = False
        # uvicorn's `cycle` is the newest that was read; requests before it may not be answered yet.
        self._answering: RequestResponseCycle | None = None
        self._in_head = self._in_body = False
        self._held = 0  # bytes read since a head, or a piece of a body, was complete
        self._header_count = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        metrics.CONNECTIONS.inc()
        if not self._siblings.make_room(len(self.connections)):
            self._refuse(503, "too_many_connections", "the gateway has no connection left")
            return
        self._siblings.waiting[self] = None
        self._arm(self._limits.head_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        metrics.CONNECTIONS.dec()
        self._siblings.waiting.pop(self, None)
        self._disarm()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self._give_up_answers()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_read_buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._held += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        limit = self._limits.max_header_bytes
        if self._held > limit:
            self._refuse(431, "headers_too_large", f"the headers have more than {limit:,} bytes")
        elif self._timer is None and self._is_waiting():
            # Empty lines before a request end the keep-alive timeout without beginning one.
            self._arm(self._limits.head_timeout_s, self._too_slow)

    # Callbacks of the parser. What they raise ends in `send_400_response`.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._header_count = 0
        self._arm(self._limits.head_timeout_s, self._too_slow)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._header_count > self._limits.max_headers:
            limit = self._limits.max_headers
            self._refusal = (431, "too_many_headers", f"the request has more than {limit} headers")
            raise ValueError(self._refusal)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once on one connection")
        self._in_head, self._in_body, self._held = False, True, 0
        self._siblings.waiting.pop(self, None)
        self._arm(self._limits.body_timeout_s, self._too_slow)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._held = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._held = False, 0
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._arm(UNREAD_S, self.transport.abort)
        elif self._is_waiting():
            self._siblings.waiting[self] = None

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # close would wait for a client that doesn't read
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        fault = self._refusal or (400, "invalid_http", "what was sent is no valid HTTP/1.1 request")
        self._refuse(*fault)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _ends_by_closing(app, cycle)
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up_answers(self) -> None:
        """Tells who makes an answer that nobody gets it; those behind it are not begun."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        self.pipeline.clear()

    def _is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _too_slow(self) -> None:
        """The head or the body is not there in time."""
        self._timer = None
        if self._in_body:
            due = f"the body did not come within {self._limits.body_timeout_s:g} s"
        elif not self._is_waiting():
            self.cycle.keep_alive = False  # half a request behind one that is being answered
            return
        else:
            due = f"no request came within {self._limits.head_timeout_s:g} s"
            if not self._in_head:
                self.transport.abort()  # said nothing, and is told nothing
                return
        self._refuse(408, "request_timeout", due)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answers, unless an answer has begun, and closes."""
        self._refused = True
        if self.transport.is_closing():
            return
        running = not self._is_waiting()
        if running:
            self.scope["state"][REFUSED_STATUS] = status  # which the middleware counts
        else:
            metrics.REQUESTS.labels("rest", "other", str(status), "").inc()
        self._unset_keepalive_if_required()
        if not running or not (self.cycle.response_started or self.pipeline):
            self.transport.write(_refusal(status, code, message))
        self._give_up_answers()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._arm(_LINGER_S, self.transport.abort)

    def _arm(self, delay_s: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay_s, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _refusal(status: int, code: str, message: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    if status >= 500:
        error["type"] = "server_error"
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-request-id: {new_request_id()}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def _ends_by_closing(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """`app` for a client of HTTP/1.0, which knows no chunks: a body of unknown length ends with
    the connection (RFC 9112, 6.3), which uvicorn closes after it anyway."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        sized = True

        async def plain(message: Message) -> None:
            nonlocal sized
            if message["type"] == "http.response.start":
                sized = "content-length" in Headers(raw=list(message.get("headers", [])))
                if not sized:
                    cycle.chunked_encoding = False
            elif not sized:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, plain)

    return answer
