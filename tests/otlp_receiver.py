"""A collector of OpenTelemetry's protocol over HTTP, on loopback: keeps every span that comes."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from patience import PATIENCE_S


@dataclass(frozen=True)
class Span:
    """One span as it was sent; ids are in hex, an empty parent is a root's."""

    name: str
    service: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any] = field(hash=False)
    events: tuple[str, ...] = ()
    error: str | None = None  # the status's description; None: no error


class OtlpReceiver:
    """`with OtlpReceiver() as receiver`: spans sent to `receiver.endpoint` are in `spans`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                receiver.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> OtlpReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_span(one, service) for one in scope.spans]

    def trace_with(self, condition: Callable[[Span], bool]) -> list[Span]:
        """The spans of the one trace of which a span fulfils the condition; none if it is not
        there yet."""
        found = {span.trace for span in self.spans if condition(span)}
        assert len(found) <= 1, found
        return [span for span in self.spans if span.trace in found]

    def wait(self, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
        """What `condition` gives, once it gives something."""
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < end, [(span.service, span.name) for span in self.spans]
            time.sleep(0.05)
        return found


def _span(one: Any, service: str) -> Span:
    return Span(
        one.name,
        service,
        one.trace_id.hex(),
        one.span_id.hex(),
        one.parent_span_id.hex(),
        _attributes(one.attributes),
        tuple(event.name for event in one.events),
        one.status.message if one.status.code == one.status.STATUS_CODE_ERROR else None,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def ancestors(span: Span, spans: list[Span]) -> list[str]:
    """Names from the span's parent up to the root."""
    by_id = {one.id: one for one in spans}
    names = []
    while span.parent in by_id:
        span = by_id[span.parent]
        names.append(span.name)
    return names
