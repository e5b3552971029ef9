"""Typed errors as gRPC status with google.rpc details, in both directions.

ErrorInfo carries reason and metadata (domain "plinth"), BadRequest the field, RetryInfo the
delay, QuotaFailure what is exhausted, RequestInfo the request id. See google/rpc/error_details.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from plinth.shared.errors import (
    ERROR_TYPES,
    Internal,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
    Unavailable,
    plain,
)
from plinth.shared.identity import current_request_id

DOMAIN = "plinth"
REQUEST_ID_KEY = "x-request-id"
_DETAILS_KEY = "grpc-status-details-bin"
# Trailers share HTTP/2's header limit: 8 KiB by default, and who is sent more gets an error of
# gRPC's own instead. The message is in there twice: percent-encoded, a byte that is not printable
# ASCII as three, and in the details' base64.
_MESSAGE_CHARS = 1500
_MESSAGE_OCTETS = 2700
_WORD_BYTES = 64
_VALUE_BYTES = 256
_METADATA_BYTES = 1000  # all keys and values
_CANCELLATION_S = 1.0


def _message(text: str) -> str:
    """As much of it as may stand in both places."""
    octets = 0
    for at, character in enumerate(text):
        printable = " " <= character <= "~" and character != "%"
        octets += 1 if printable else 3 * len(character.encode())
        if at >= _MESSAGE_CHARS or octets > _MESSAGE_OCTETS:
            return text[: at - 1] + "…"
    return text


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8."""
    whole = text.encode()
    return text if len(whole) <= limit else whole[: limit - 3].decode("utf-8", "ignore") + "…"


def _facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """As many of them as there is room for."""
    facts: dict[str, str] = {}
    left = _METADATA_BYTES
    for key, value in metadata.items():
        name, fact = _cut(plain(key), _WORD_BYTES), _cut(plain(value), _VALUE_BYTES)
        left -= len(name.encode()) + len(fact.encode())
        if left < 0:
            break
        facts[name] = fact
    return facts


def to_status(e: PlinthError) -> grpc.Status:
    """The status that a handler which raised `e` answers with."""
    message = _message(plain(e.message))
    status = status_pb2.Status(code=code_pb2.Code.Value(e.code), message=message)
    for detail in _details(e, message):
        status.details.add().Pack(detail)
    result: grpc.Status = rpc_status.to_status(status)
    return result


def _details(e: PlinthError, message: str) -> list[Message]:
    reason = _cut(plain(e.reason), _WORD_BYTES)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=_facts(e.metadata))
    ]
    field, short = _cut(plain(e.field), _VALUE_BYTES), _cut(message, _VALUE_BYTES)
    if isinstance(e, ResourceExhausted):
        subject = field or _cut(plain(e.metadata.get("subject", "")), _VALUE_BYTES)
        violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=short)
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if field:
        wrong = error_details_pb2.BadRequest.FieldViolation(field=field, description=short)
        details.append(error_details_pb2.BadRequest(field_violations=[wrong]))
    if e.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, round(e.retry_after_s * 1e9)))
        details.append(retry)
    request_id = current_request_id()
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return details


# gRPC's own words where a message is longer than one side takes, and where a call was lost; the
# last ones are all that is told to who writes to a stream in the moment in which it ends.
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
_LOST = (
    "RST_STREAM",
    "Stream removed",
    "Connection reset",
    "GOAWAY",
    "Socket closed",
    "Internal error from Core",
)


def from_rpc_error(e: grpc.RpcError, where: str = "") -> PlinthError:
    """The typed error that the other side raised; from a foreign server, the nearest one. Its cause
    is `e`. What may pass by itself is told from what can't, also where the other side could say
    nothing: a connection that was lost, or a server that stopped, is Unavailable, and a message
    that is too long to be sent InvalidArgument.

    where: whom it was said to or by; told with what the other side did not say itself.
    """
    code: grpc.StatusCode = e.code()
    told = e.details() or f"the call ended with {code.name}"
    if said(e):
        error = ERROR_TYPES.get(code.name, Internal)(told)
        for key, value in _trailers(e):
            if key == _DETAILS_KEY:
                _read_details(error, value)
    else:
        error = _unsaid(code, told, where)
    error.__cause__ = e
    return error


def too_large(where: str, size: int, most: int) -> InvalidArgument:
    """Of a message of `size` bytes to or from `where`."""
    return InvalidArgument(
        f"{where + ': ' if where else ''}a message of {size:,} bytes is too long for one call, "
        f"which takes {most:,} at most; send or ask for less at once",
        reason="MESSAGE_TOO_LARGE",
    )


def _unsaid(code: grpc.StatusCode, told: str, where: str) -> PlinthError:
    if long := _TOO_LARGE.search(told):
        return too_large(where, int(long[1]), int(long[2]))
    lost = code.name in ("INTERNAL", "UNKNOWN") and any(words in told for words in _LOST)
    told = f"{where}: {told}" if where else told
    if lost or code is grpc.StatusCode.CANCELLED:
        return Unavailable(told, reason="CONNECTION_LOST")
    return ERROR_TYPES.get(code.name, Internal)(told)


def raised_by_call(error: BaseException) -> grpc.RpcError | None:
    """The call's own error, where `error` is what `from_rpc_error` made of it; None where it was
    raised in this process."""
    return error.__cause__ if isinstance(error.__cause__, grpc.RpcError) else None


def said(e: BaseException) -> bool:
    """Whether the other side sent this error (a call's own, or what `from_rpc_error` made of it),
    rather than the connection to it having broken."""
    raised = e if isinstance(e, grpc.RpcError) else raised_by_call(e)
    return raised is not None and any(key == _DETAILS_KEY for key, _ in _trailers(raised))


def _trailers(e: grpc.RpcError) -> list[tuple[str, Any]]:
    trailers: Any = e.trailing_metadata() if hasattr(e, "trailing_metadata") else None
    return [(pair[0], pair[1]) for pair in trailers or ()]


def _read_details(error: PlinthError, value: bytes) -> None:
    try:
        status = status_pb2.Status.FromString(value)
    except DecodeError:
        return  # a foreign server's own bytes: the code and the message are all that is known
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            error.reason = info.reason or error.reason
            error.metadata.update(info.metadata)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            error.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(bad.DESCRIPTOR):
            detail.Unpack(bad)
            if bad.field_violations:
                error.field = bad.field_violations[0].field


async def fail(
    context: grpc.aio.ServicerContext[Any, Any], error: PlinthError, *, retried: bool = False
) -> NoReturn:
    """Ends the call with `error`; the request id goes along in the trailers.

    retried: a call further down was retried already, so the caller's channel must not do it again
    (each stage on the way would multiply the attempts).

    Where the caller is gone, the call ends as a hang-up; but an Internal is a fault all the same,
    and then what gRPC raised goes on.
    """
    status = to_status(error)
    trailers = [*(status.trailing_metadata or ()), (REQUEST_ID_KEY, current_request_id())]
    if retried:
        trailers.append(("grpc-retry-pushback-ms", "-1"))
    try:
        await context.abort(status.code, status.details or "", tuple(trailers))
    except grpc.aio.InternalError:
        if isinstance(error, Internal):
            raise
        await _cancelled()  # of a call that has a status gRPC says no more that its caller hung up
    raise AssertionError("abort raises")


async def hung_up() -> NoReturn:
    """Ends a call that gRPC could not write to (its InternalError, "Failed execute_batch"): the
    caller hung up, and the cancellation that says so may still be on its way to this task."""
    task = asyncio.current_task()
    assert task is not None
    if not task.cancelling():
        await asyncio.sleep(_CANCELLATION_S)
    await _cancelled()


async def _cancelled() -> NoReturn:
    """As if gRPC had cancelled the call's task, which is how every hang-up looks."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    raise AssertionError("a cancelled task goes on")
