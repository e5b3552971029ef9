"""From the bytes of a request to a checked model of it, or an error that names what is wrong.

A small body is read where it is. A larger one is unpacked, parsed and checked in a thread, whose
steps are short enough that streams go on meanwhile; one thread, so that many large bodies take
turns with each other rather than with the streams.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from plinth.gateway import bounded_json
from plinth.gateway.limits import check_unicode
from plinth.gateway.rest import content_encoding
from plinth.shared.errors import Cancelled, InvalidArgument, PlinthError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

INLINE_BYTES = 8 * 1024  # a millisecond or two to parse
MAX_QUERY_BYTES = 8 * 1024
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"
_parser = ThreadPoolExecutor(1, thread_name_prefix="bodies")


class BodyTooLarge(PlinthError):
    """More bytes than the gateway reads (HTTP 413)."""

    code = "INVALID_ARGUMENT"
    http = 413
    openai_type = "invalid_request_error"


async def read(request: Request, make: Callable[[dict[str, Any]], T], limit: int) -> T:
    """What `make` makes of the JSON object in the body, of which at most `limit` bytes are ever
    held, packed or not."""
    encoding = content_encoding.encoding_of(request.headers.getlist("content-encoding"))
    raw = await _received(request, limit)
    # The list is emptied by whoever reads it: the bytes are gone before the values are made.
    held, raw = [raw], bytearray()
    size = limit if encoding else len(held[0])
    return await beside(partial(_made, held, encoding, limit, make), size)


async def beside(work: Callable[[], T], size: int) -> T:
    """The result of `work`, which reads `size` bytes: here if they are few, else in the thread."""
    if size <= INLINE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_parser, work)


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body as it is, unpacked; at most `limit` bytes are ever held."""
    encoding = content_encoding.encoding_of(request.headers.getlist("content-encoding"))
    raw = await _received(request, limit)
    if not encoding:
        return bytes(raw)
    loop = asyncio.get_running_loop()
    return bytes(await loop.run_in_executor(_parser, partial(_unpacked, raw, encoding, limit)))


def query(request: Request, kind: type[M]) -> M:
    """The query string as a `kind`, whose lists are separated by commas."""
    if len(request.scope["query_string"]) > MAX_QUERY_BYTES:
        raise InvalidArgument(
            f"the query string has more than {MAX_QUERY_BYTES:,} bytes", reason="QUERY_TOO_LONG"
        )
    given = dict(request.query_params)
    return validated(kind, given)


def validated(kind: type[M], value: dict[str, Any]) -> M:
    """`value` as a `kind`. InvalidArgument for the first thing that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _explain(error, value) from None


def parse(raw: bytes | bytearray) -> dict[str, Any]:
    """InvalidArgument for bytes that are no UTF-8, no JSON object, or over a bound."""
    return _parsed([bytearray(raw)])


def parse_part(raw: bytes, kind: type[T], where: str) -> T:
    """JSON within a message, which is at `where`: an object (`dict`) or a list. InvalidArgument."""
    try:
        value = _value([bytearray(raw)])
    except InvalidArgument as error:
        what = error.message.removeprefix("the body ")
        raise InvalidArgument(f"{where}: {what}", reason=error.reason, field=where) from None
    if not isinstance(value, kind):
        right = "object" if kind is dict else "list"
        raise InvalidArgument(
            f"{where}: must be a JSON {right}", reason="INVALID_JSON", field=where
        )
    return value


async def _received(request: Request, limit: int) -> bytearray:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        _too_large(limit)
    whole = bytearray()
    try:
        async for part in request.stream():
            whole += part
            if len(whole) > limit:
                _too_large(limit)
    except ClientDisconnect as error:
        # As itself it would reach Starlette's handler of crashes, and count as one.
        raise Cancelled("the client hung up before its body was complete") from error
    return whole


def _too_large(limit: int) -> NoReturn:
    raise BodyTooLarge(
        f"the request's body is larger than {limit:,} bytes (gateway.max_body_bytes)",
        reason="BODY_TOO_LARGE",
    )


def _made(
    held: list[bytearray], encoding: str, limit: int, make: Callable[[dict[str, Any]], T]
) -> T:
    if encoding:
        held.append(_unpacked(held.pop(), encoding, limit))
    return make(_parsed(held))


def _unpacked(packed: bytearray, encoding: str, limit: int) -> bytearray:
    try:
        return content_encoding.unpacked(packed, encoding, limit)
    except content_encoding.TooLarge:
        _too_large(limit)


def _parsed(held: list[bytearray]) -> dict[str, Any]:
    """The object in `held`, which is empty then."""
    value = _value(held)
    if not isinstance(value, dict):
        raise InvalidArgument("the body must be a JSON object", reason="INVALID_JSON")
    return value


def _value(held: list[bytearray]) -> Any:
    """The value in `held`, which is empty then."""
    raw = held.pop()
    if raw.startswith(_BOM):  # what some editors and shells put before UTF-8
        del raw[: len(_BOM)]
    try:
        bounded_json.check_utf8(raw)
        value = bounded_json.loads(raw)
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"the body is not valid UTF-8: {error.reason} at byte {error.start}",
            reason="INVALID_UTF8",
        ) from None
    except bounded_json.JsonError as error:
        raise InvalidArgument(
            f"the body is not valid JSON: {error}", reason="INVALID_JSON"
        ) from None
    if _ESCAPED_SURROGATE.search(raw):
        _refuse_surrogates(value, "")
    return value


def _refuse_surrogates(value: Any, path: str) -> None:
    """JSON can spell halves of a pair that no UTF-8 can carry any further."""
    if isinstance(value, str):
        check_unicode(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, int):
                _refuse_surrogates(item, f"{path}.{index}".lstrip("."))
    elif isinstance(value, dict):
        for key, item in value.items():
            check_unicode(key, f"{path}: a key" if path else "a key")
            _refuse_surrogates(item, f"{path}.{key}".lstrip("."))


def _explain(error: ValidationError, body: dict[str, Any]) -> InvalidArgument:
    """The first complaint, with its place; of a union's complaints, the one that got furthest."""
    items = error.errors(include_url=False, include_context=False, include_input=False)
    item = max(items, key=lambda one: len(_path(one["loc"], body)))
    first = items[0]
    if first["loc"][0] != item["loc"][0]:
        item = first
    path = ".".join(map(str, _path(item["loc"], body)))[:256] or "body"
    message = item["msg"]
    if item["type"] == "extra_forbidden":
        message = "this parameter is not known"
    reason = "UNKNOWN_PARAMETER" if item["type"] == "extra_forbidden" else "INVALID_VALUE"
    if item["type"] == "missing":
        reason = "MISSING_PARAMETER"
    return InvalidArgument(f"{path}: {message}", reason=reason, field=path)


def _path(location: tuple[int | str, ...], body: Any) -> list[int | str]:
    """`location` without the names of union members, which are of no meaning to a client."""
    path: list[int | str] = []
    here = body
    for index, part in enumerate(location):
        if isinstance(here, dict) and (part in here or index == len(location) - 1):
            path.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path.append(part)
            here = here[part]
    return path
