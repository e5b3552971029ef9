"""One family of typed errors, mapped once to gRPC status and once to the OpenAI error body.

A message says what was wrong, where, and what would be right. Imports nothing but the standard
library, so that kernels, models and the engine can raise these too. Knows neither gRPC nor HTTP
beyond the code's name and number; the mapping to `google.rpc` details is `shared/rpc/status.py`.
"""

from __future__ import annotations

from typing import ClassVar


class PlinthError(Exception):
    """What every part of Plinth raises on purpose.

    message: for people; never holds a secret, since it reaches the client.
    reason: a machine's word in UPPER_SNAKE ("MODEL_NOT_FOUND"); by default the code's name.
    field: path of what was wrong in the request ("sampling.max_tokens"); empty if none.
    retry_after_s: when trying again makes sense, in seconds; None if it doesn't or isn't known.
    metadata: further facts for machines, strings only.
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
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})

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


class Unavailable(PlinthError):
    """Nobody can answer just now; the same request may succeed later."""

    code = "UNAVAILABLE"
    http = 503


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


class Cancelled(PlinthError):
    """The caller went away or asked to stop."""

    code = "CANCELLED"
    http = 499


class Aborted(PlinthError):
    """Somebody else was faster: a lost lease, a stale fence, a lost compare-and-set."""

    code = "ABORTED"
    http = 409


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
