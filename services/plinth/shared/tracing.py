"""Traces by OpenTelemetry across the gateway, stages and queues, once an OTLP endpoint is set.

A span is one call served or one queued item worked on. Its context travels as W3C `traceparent`:
in the metadata of a call, and in a queue's item. Without an endpoint no exporter is imported, no
span is made, and every function here returns at once. Spans name methods, ids and codes, never what
was asked or answered. Knows no stage.

What the exporter needs beside the endpoint (headers with a token, a CA, batch sizes) it reads from
OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_HEADERS and so on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

    from plinth.shared.settings import Settings

TRACEPARENT = "traceparent"  # https://www.w3.org/TR/trace-context/
EXPORT_TIMEOUT_S = 5.0
STOP_S = 2.0  # what a process that ends gives its last spans

Kind = Literal["server", "consumer", "internal"]
Attributes = Mapping[str, str | int | float | bool]
_NOTHING: AbstractContextManager[None] = nullcontext()


class _Traced:
    """What a process has when it traces."""

    def __init__(self, settings: Settings, component: str, *, public: bool) -> None:
        # Imported here, so that who doesn't trace doesn't pay for it.
        import requests  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import (  # noqa: PLC0415
            ParentBased,
            TraceIdRatioBased,
        )

        session = requests.Session()
        session.trust_env = False  # as between stages: no proxy that is meant for the web
        telemetry = settings.telemetry
        exporter = OTLPSpanExporter(
            endpoint=f"{telemetry.otlp_endpoint.rstrip('/')}/v1/traces",
            timeout=EXPORT_TIMEOUT_S,
            session=session,
        )
        ours = TraceIdRatioBased(telemetry.trace_ratio)
        # A client of the gateway may bring a trace, and doesn't decide whether we keep ours.
        sampler = (
            ParentBased(ours, remote_parent_sampled=ours, remote_parent_not_sampled=ours)
            if public
            else ParentBased(ours)
        )
        instance = f"{socket.gethostname()}:{os.getpid()}"
        self.provider: TracerProvider = TracerProvider(
            sampler=sampler,
            resource=Resource.create(
                {"service.name": f"plinth-{component}", "service.instance.id": instance}
            ),
            shutdown_on_exit=False,
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer: Tracer = self.provider.get_tracer("plinth")


_traced: _Traced | None = None
_inherited = ""


def start(settings: Settings, component: str, *, public: bool = False) -> None:
    """Spans of this process go to settings.telemetry.otlp_endpoint from now on, as those of the
    service `plinth-<component>`; without one nothing happens. Call it before servers are built.

    public: callers are clients, whose wish to be sampled is not followed.
    """
    global _traced  # noqa: PLW0603 - one exporter per process, like its one metrics listener
    if settings.telemetry.otlp_endpoint and _traced is None:
        _traced = _Traced(settings, component, public=public)


def stop() -> None:
    """Sends what is left, for two seconds at most. Blocks."""
    global _traced  # noqa: PLW0603
    if _traced is not None:
        # By itself it would wait half a minute for a collector that is away.
        ending = threading.Thread(target=_traced.provider.shutdown, daemon=True)
        ending.start()
        ending.join(STOP_S)
        _traced = None


def on() -> bool:
    """Whether this process traces."""
    return _traced is not None


def inherit(parent: str) -> None:
    """For a process that makes no spans itself: what it asks others for belongs to `parent`."""
    global _inherited  # noqa: PLW0603
    _inherited = parent


def span(
    name: str, *, kind: Kind = "internal", parent: str = "", attributes: Attributes | None = None
) -> AbstractContextManager[None]:
    """The block as a span: below `parent` (a traceparent) if that is given and well-formed, else
    below the span that it is in. What the block raises marks it as an error, by type alone; of a
    server's span whoever made it says so by `failed`."""
    if _traced is None:
        return _NOTHING
    return _span(_traced.tracer, name, kind, parent, attributes or {})


@contextmanager
def _span(
    tracer: Tracer, name: str, kind: Kind, parent: str, attributes: Attributes
) -> Iterator[None]:
    from opentelemetry import trace  # noqa: PLC0415

    with tracer.start_as_current_span(
        name,
        context=_context(parent) if parent else None,
        kind=trace.SpanKind[kind.upper()],
        attributes=dict(attributes),
        record_exception=False,  # its text may hold what a client sent
        set_status_on_exception=False,
    ):
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            note("plinth.cancelled", True)
            raise
        except BaseException as error:
            if kind != "server":  # the gateway knows better: by the status that it answers with
                failed(type(error).__name__)
            raise


def _context(parent: str) -> Context:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator().extract({TRACEPARENT: parent})


def note(key: str, value: str | int | float | bool) -> None:
    """An attribute of the current span."""
    if _traced is not None:
        from opentelemetry import trace  # noqa: PLC0415

        trace.get_current_span().set_attribute(key, value)


def event(name: str, **attributes: str | int | float | bool) -> None:
    """Something that happened in the current span, at this moment."""
    if _traced is not None:
        from opentelemetry import trace  # noqa: PLC0415

        trace.get_current_span().add_event(name, attributes)


def failed(reason: str) -> None:
    """The current span ended badly. `reason` is a code or a type, never a text."""
    if _traced is not None:
        from opentelemetry import trace  # noqa: PLC0415

        trace.get_current_span().set_status(trace.Status(trace.StatusCode.ERROR, reason))


def traceparent() -> str:
    """What tells another process of the current span; empty where there is none."""
    if _traced is None:
        return _inherited
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT, "")
