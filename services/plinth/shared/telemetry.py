"""Logs and metrics, the same for every process.

Logs go to stderr, one event per line: JSON, or pretty on a terminal. Every event carries the
request id of the call that it belongs to, read from `shared/identity`, and so do records of
libraries that use the standard `logging`. Metrics carry the prefix `plinth_` and base units in
their names. Knows nothing of what is logged or counted.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from plinth.shared.errors import FailedPrecondition, plain
from plinth.shared.identity import current_request_id

if TYPE_CHECKING:
    from plinth.shared.settings import Settings

PREFIX = "plinth_"
_SECRET_WORDS = ("token", "password", "secret", "authorization", "api_key")
_SECRET_COUNTS = ("tokens", "token_id", "token_count")  # what a language model counts


def _add_request_id(_logger: Any, _method: str, event: EventDict) -> EventDict:
    request_id = current_request_id()
    if request_id:
        event.setdefault("request_id", request_id)
    return event


def _mask_secrets(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for key in event:
        name = str(key).lower()
        if any(word in name for word in _SECRET_WORDS) and not any(
            word in name for word in _SECRET_COUNTS
        ):
            event[key] = "********"
    return event


def _name_logger(_logger: Any, _method: str, event: EventDict) -> EventDict:
    # structlog has a parameter `logger` of its own, so the name travels as `logger_name`.
    if "logger_name" in event:
        event["logger"] = event.pop("logger_name")
    return event


def _write(line: str) -> None:
    # What a log file that is strict about UTF-8 can't hold (a file name's bytes) is escaped.
    sys.stderr.write(line.encode("utf-8", "backslashreplace").decode() + "\n")


def _tell_errors(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Exceptions among the values as texts: a stranger's own way to make one may fail."""
    for key, value in event.items():
        if isinstance(value, BaseException) and key != "exc_info":
            event[key] = plain(value)
    return event


class _ToStderr:
    """Looks sys.stderr up at each event, since tests and daemons exchange it."""

    def msg(self, message: str) -> None:
        _write(message)

    debug = info = warning = error = critical = exception = msg


class _StderrHandler(logging.Handler):
    """The same for records of the standard logging."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write(self.format(record))
        except Exception:  # noqa: BLE001 - logging's own convention: a record never ends its caller
            self.handleError(record)


_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    _add_request_id,
    _name_logger,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _mask_secrets,
    _tell_errors,
)


def configure_logging(settings: Settings, component: str) -> None:
    """Sets structlog and the standard logging up for this process; every event names `component`.

    settings.log_format "auto" is pretty where stderr is a terminal and JSON elsewhere.
    """
    pretty = settings.log_format == "pretty" or (
        settings.log_format == "auto" and sys.stderr.isatty()
    )

    def name_component(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event.setdefault("component", component)
        return event

    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    chain = (*_SHARED, name_component)
    _configure_structlog(chain, _renderers(pretty), level)
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *chain],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(pretty),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up when something is wrong; their chatter is for debugging.
    root.setLevel(logging.DEBUG if settings.log_level == "debug" else logging.WARNING)


def _renderers(pretty: bool) -> list[Processor]:
    if pretty:
        return [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    # Without local variables: they hold prompts and secrets.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(default=plain),
    ]


def _configure_structlog(
    chain: Sequence[Processor], renderers: Sequence[Processor], level: int
) -> None:
    structlog.configure(
        processors=[*chain, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _ToStderr(),
        cache_logger_on_first_use=False,
    )


# Until a process configures its own: what a library user sees goes to stderr, never to stdout.
_configure_structlog(_SHARED, _renderers(pretty=True), logging.INFO)


def get_logger(name: str) -> FilteringBoundLogger:
    """A structlog logger; `name` appears as `logger` in its events."""
    logger: FilteringBoundLogger = structlog.get_logger(logger_name=name)
    return logger


def _prefixed(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name


def counter(name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
    """A counter named plinth_<name>; end the name with `_total`."""
    return Counter(_prefixed(name), documentation, labels)


def gauge(name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
    """A gauge named plinth_<name>."""
    return Gauge(_prefixed(name), documentation, labels)


def histogram(
    name: str, documentation: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
) -> Histogram:
    """A histogram named plinth_<name>; base units (seconds, bytes) in the name."""
    return Histogram(_prefixed(name), documentation, labels, buckets=tuple(buckets))


_server: tuple[WSGIServer, threading.Thread] | None = None
_server_lock = threading.Lock()


def start_metrics_server(port: int, host: str = "127.0.0.1") -> int:
    """Serves this process's metrics over HTTP and returns the port (0 picks a free one).

    One per process: a second call returns the running one's port. FailedPrecondition when the
    port is in use.
    """
    global _server  # noqa: PLW0603 - one listener per process, like the metrics' own registry
    with _server_lock:
        if _server is None:
            try:
                _server = start_http_server(port, addr=host)
            except OSError as error:
                raise FailedPrecondition(
                    f"metrics can't listen on {host}:{port}: {error.strerror or error}; set "
                    "PLINTH_METRICS_PORT to another port, or 0 for any free one",
                    reason="PORT_IN_USE",
                    field="metrics_port",
                ) from error
        return int(_server[0].server_port)


def stop_metrics_server() -> None:
    """Closes it, if it runs."""
    global _server  # noqa: PLW0603
    with _server_lock:
        if _server is not None:
            server, thread = _server
            server.shutdown()
            server.server_close()
            thread.join()
            _server = None
