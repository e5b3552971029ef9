"""Which server streams can be resumed, when, and how long that is tried.

Such a method has a `resume_token` in its request and in its responses. Each response carries the
position behind it, and a request with that token gives what comes after: so every message comes
once, whichever replica tells it, and whatever happened to the one before. Knows no messages.
"""

from __future__ import annotations

import time

from google.protobuf.descriptor import MethodDescriptor

from plinth.shared.errors import (
    Cancelled,
    Internal,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.rpc.status import raised_by_call, said

_POSITION = "resume_token"
# How long a stream that has begun waits for somebody to go on with it: longer than a stage, or
# the gateway, takes to start again.
PATIENCE_S = 150.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0


def is_resumable(method: MethodDescriptor) -> bool:
    """Whether its stream of responses can go on after a break."""
    return (
        method.server_streaming
        and not method.client_streaming
        and _POSITION in method.input_type.fields_by_name
        and _POSITION in method.output_type.fields_by_name
    )


def broken(error: PlinthError) -> bool:
    """Whether somebody else may go on where the stream ended: the connection broke, or the server
    can't tell more now. False if it is the answer."""
    if raised_by_call(error) is None:
        return isinstance(error, Unavailable)  # nobody there to be asked
    # A server that stops cancels what has not ended; what is cancelled here is no error of a call.
    if isinstance(error, Unavailable | Cancelled):
        return True
    if isinstance(error, ResourceExhausted) and error.retry_after_s is not None:
        return True
    # What a connection that is reset in the middle of a message looks like.
    return isinstance(error, Internal) and not said(error)


class Break:
    """How long nobody has gone on, and when to try again. For one stream."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._since: float | None = None
        self._wait_s = _FIRST_WAIT_S

    def mended(self) -> None:
        """Somebody answers."""
        self._since, self._wait_s = None, _FIRST_WAIT_S

    def next_wait_s(self, error: PlinthError) -> float | None:
        """Seconds until the next attempt; None when the patience is spent."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._patience_s:
            return None
        wait, self._wait_s = self._wait_s, min(2 * self._wait_s, _LONGEST_WAIT_S)
        return max(wait, min(error.retry_after_s or 0.0, _LONGEST_WAIT_S))
