"""From the bytes of a request to a checked model of it, or an error that names what is wrong."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from plinth.gateway.limits import check_unicode
from plinth.shared.errors import InvalidArgument, PlinthError

T = TypeVar("T", bound=BaseModel)

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyTooLarge(PlinthError):
    """More bytes than the gateway reads (HTTP 413)."""

    code = "INVALID_ARGUMENT"
    http = 413
    openai_type = "invalid_request_error"


async def read(request: Request, kind: type[T], limit: int) -> T:
    """The body of `request` as a `kind`; at most `limit` bytes are ever held."""
    return parse(await read_bytes(request, limit), kind)


def query(request: Request, kind: type[T]) -> T:
    """The query string as a `kind`, whose lists are separated by commas."""
    given = dict(request.query_params)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _explain(error, given) from None


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body as it is; at most `limit` bytes are ever held."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> NoReturn:
    raise BodyTooLarge(
        f"the request's body is larger than {limit:,} bytes", reason="BODY_TOO_LARGE"
    )


def parse(raw: bytes, kind: type[T]) -> T:
    """InvalidArgument for bytes that are no UTF-8, no JSON, or not what `kind` takes."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"the body is not valid UTF-8: {error.reason} at byte {error.start}",
            reason="INVALID_UTF8",
        ) from None
    except RecursionError:
        raise InvalidArgument("the JSON is nested too deeply", reason="INVALID_JSON") from None
    except ValueError as error:
        raise InvalidArgument(
            f"the body is not valid JSON: {error}", reason="INVALID_JSON"
        ) from None
    if not isinstance(value, dict):
        raise InvalidArgument("the body must be a JSON object", reason="INVALID_JSON")
    if _ESCAPED_SURROGATE.search(raw):
        _refuse_surrogates(value, "")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _explain(error, value) from None


def _refuse_surrogates(value: Any, path: str) -> None:
    """JSON can spell halves of a pair that no UTF-8 can carry any further."""
    if isinstance(value, str):
        check_unicode(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, f"{path}.{index}".lstrip("."))
    elif isinstance(value, dict):
        for key, item in value.items():
            check_unicode(key, path)
            _refuse_surrogates(item, f"{path}.{key}".lstrip("."))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _explain(error: ValidationError, body: dict[str, Any]) -> InvalidArgument:
    """The first complaint, with its place; of a union's complaints, the one that got furthest."""
    items = error.errors(include_url=False, include_context=False)
    item = max(items, key=lambda one: len(_path(one["loc"], body)))
    first = items[0]
    if first["loc"][0] != item["loc"][0]:
        item = first
    path = ".".join(map(str, _path(item["loc"], body))) or "body"
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
