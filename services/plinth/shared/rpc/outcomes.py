"""How calls end: the name of each one's status, told to whoever counts or traces it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc

from plinth.shared.rpc.handlers import Context, Continuation, Handler, wrap
from plinth.shared.telemetry import counter, gauge, histogram

REQUESTS = counter("rpc_requests_total", "Calls served, by method and code.", ["method", "code"])
IN_FLIGHT = gauge("rpc_in_flight", "Calls being served.", ["method"])
DURATION = histogram(
    "rpc_duration_seconds",
    "Time from the call's arrival to its end; for streams, to the last message.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)


@contextmanager
def outcome(context: Context, ended: Callable[[str], None]) -> Iterator[None]:
    """For a layer around a call: `ended` gets the name of the status that it ends with."""
    cancelled = False
    try:
        yield
    except asyncio.CancelledError:
        cancelled = True
        raise
    finally:
        ended(_code(context, cancelled))


def _code(context: Context, cancelled: bool) -> str:
    if cancelled:
        remaining = context.time_remaining()
        return "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
    code: Any = context.code()
    if not code:
        return "OK"
    return str(code.name) if isinstance(code, grpc.StatusCode) else _CODE_NAMES[code]


_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


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

            def ended(code: str) -> None:
                IN_FLIGHT.labels(method).dec()
                DURATION.labels(method).observe(time.perf_counter() - started)
                REQUESTS.labels(method, code).inc()

            IN_FLIGHT.labels(method).inc()
            with outcome(context, ended):
                yield

        return wrap(handler, layer)
