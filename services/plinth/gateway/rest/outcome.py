"""How a REST request ends, where its status alone doesn't say so: after an answer's head is sent.

A stream's status is 200 however it ends. What goes wrong in it is told here by whoever sends the
error as an event, and counted by the middleware.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from plinth.shared.errors import PlinthError


@dataclass
class RequestOutcome:
    """code: for the metrics and the trace, if not the status."""

    code: str = ""


current: ContextVar[RequestOutcome | None] = ContextVar("plinth_outcome", default=None)


def stream_failed(error: BaseException) -> None:
    """The answer that is being streamed ends in `error`."""
    outcome = current.get()
    if outcome is not None:
        outcome.code = stream_code(error)


def stream_code(error: BaseException) -> str:
    """STREAM_ and the gRPC name of `error`; 499 for a client that hung up."""
    code = error.code if isinstance(error, PlinthError) else "INTERNAL"
    return "499" if code == "CANCELLED" else f"STREAM_{code}"
