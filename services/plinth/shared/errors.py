"""One family of typed errors, mapped once to gRPC status and once to the OpenAI error body.

A message says what was wrong, where, and what would be right. Imports nothing but the standard
library, so that kernels, models and the engine can raise these too. Knows neither gRPC nor HTTP
beyond the code's name and number; the mapping to `google.rpc` details is `shared/rpc/status.py`.
"""

from __future__ import annotations

import math
import re
from typing import ClassVar

MAX_MESSAGE_CHARS = 8000
MAX_WORD_CHARS = 500  # of a reason, a field, and each key and value of the metadata
_LONGEST_RETRY_S = 365 * 86_400.0
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def plain(text: object, limit: int = MAX_MESSAGE_CHARS) -> str:
    """`text` as UTF-8 can hold it and a terminal show it, of at most `limit` characters.

    What is told of an error quotes file names, messages and programs of strangers. A byte of a file
    name that is not UTF-8 becomes \\xNN, as do control characters but tab and newline; half of a
    surrogate pair becomes \\uNNNN. What has no text (its `__str__` raises) is named by its type.
    """
    try:
        whole = str(text)
    except Exception:  # noqa: BLE001 - a stranger's __str__; what is told of an error must not fail
        whole = f"<a {type(text).__name__} without a text>"
    if len(whole) > limit:
        left_out = f" … ({len(whole):,} characters in all)"
        whole = whole[: max(0, limit - len(left_out))] + left_out
    return _UNPRINTABLE.sub(_escaped, whole)[:limit]


def described(error: BaseException) -> str:
    """An exception that nobody raised on purpose: "ValueError: what it says"."""
    said = plain(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that `os.fsdecode` could not decode (PEP 383)
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _seconds(given: float | None) -> float | None:
    """None for what no header and no Duration can hold."""
    if given is None or not math.isfinite(given):
        return None
    return min(max(0.0, given), _LONGEST_RETRY_S)


class PlinthError(Exception):
    """What every part of Plinth raises on purpose.

    message: for people; never holds a secret, since it reaches the client.
    reason: a machine's word in UPPER_SNAKE ("MODEL_NOT_FOUND"); by default the code's name.
    field: path of what was wrong in the request ("sampling.max_tokens"); empty if none.
    retry_after_s: when trying again makes sense, in seconds; None if it doesn't or isn't known.
    metadata: further facts for machines, strings only.

    All of them are made `plain`, so that they can go wherever an error is told: protobuf, JSON,
    Redis, logs, headers.
    """

    code: ClassVar[str] = "INTERNAL"
    http: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.message = plain(message)
        super().__init__(self.message)
        self.reason = plain(reason, MAX_WORD_CHARS) or self.code
        self.field = plain(field, MAX_WORD_CHARS)
        self.retry_after_s = _seconds(retry_after_s)
        self.metadata = {
            plain(key, MAX_WORD_CHARS): plain(value, MAX_WORD_CHARS)
            for key, value in (metadata or {}).items()
        }

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later though nobody changes anything: then it is
        worth another attempt."""
        return False

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickles by positional arguments only; Ray carries errors between its workers.
        return (_rebuild, (type(self), self.message, self.__dict__))


def _rebuild(kind: type[PlinthError], message: str, state: dict[str, object]) -> PlinthError:
    error = kind(message)
    error.__dict__.update(state)
    return error


class InvalidArgument(PlinthError):
    """The request is wrong whatever the state of the system."""

    code = "INVALID_ARGUMENT"
    http = 400
    openai_type = "invalid_request_error"


class NotFound(PlinthError):
    """What the request names does not exist."""

    code = "NOT_FOUND"
    http = 404
    openai_type = "invalid_request_error"


class AlreadyExists(PlinthError):
    """What the request would make is there already, and differs."""

    code = "ALREADY_EXISTS"
    http = 409
    openai_type = "invalid_request_error"


class FailedPrecondition(PlinthError):
    """The system is not in a state in which the request makes sense."""

    code = "FAILED_PRECONDITION"
    http = 400
    openai_type = "invalid_request_error"


class ResourceExhausted(PlinthError):
    """A limit, quota or bounded queue is full; carries `retry_after_s` where it can."""

    code = "RESOURCE_EXHAUSTED"
    http = 429
    openai_type = "rate_limit_error"

    @property
    def transient(self) -> bool:
        """A full disk or store stays full until people make room."""
        return self.retry_after_s is not None


class Unavailable(PlinthError):
    """Nobody can answer just now; the same request may succeed later."""

    code = "UNAVAILABLE"
    http = 503

    @property
    def transient(self) -> bool:
        return True


class Unauthenticated(PlinthError):
    """No valid credential came with the call."""

    code = "UNAUTHENTICATED"
    http = 401
    openai_type = "authentication_error"


class PermissionDenied(PlinthError):
    """The credential is valid and does not allow this."""

    code = "PERMISSION_DENIED"
    http = 403
    openai_type = "permission_error"


class DeadlineExceeded(PlinthError):
    """The call's time ran out."""

    code = "DEADLINE_EXCEEDED"
    http = 504

    @property
    def transient(self) -> bool:
        return True


class Cancelled(PlinthError):
    """The caller went away or asked to stop."""

    code = "CANCELLED"
    http = 499


class Aborted(PlinthError):
    """Somebody else was faster: a lost lease, a stale fence, a lost compare-and-set."""

    code = "ABORTED"
    http = 409

    @property
    def transient(self) -> bool:
        return True


class Internal(PlinthError):
    """A fault of Plinth's own."""

    code = "INTERNAL"
    http = 500


class DataLoss(PlinthError):
    """Stored data is damaged: truncated, of the wrong digest, not a number."""

    code = "DATA_LOSS"
    http = 500


ERROR_TYPES: dict[str, type[PlinthError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        Unauthenticated,
        PermissionDenied,
        DeadlineExceeded,
        Cancelled,
        Aborted,
        Internal,
        DataLoss,
    )
}


def to_openai_body(error: BaseException) -> dict[str, dict[str, str | None]]:
    """The body that OpenAI's clients parse; anything but a PlinthError says nothing of itself."""
    if not isinstance(error, PlinthError):
        return to_openai_body(Internal("internal error; the server's log has it by request id"))
    return {
        "error": {
            "message": error.message,
            "type": error.openai_type,
            "param": error.field or None,
            "code": error.reason.lower(),
        }
    }
