"""Objects of JSON as google.protobuf.Struct, there and back.

A Struct knows no integers: numbers are doubles. An integer that a double holds exactly comes back
as the integer; one that it does not hold is refused rather than changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from plinth.shared.errors import InvalidArgument, plain

MAX_DEPTH = 16  # protobuf's own limit of 100 messages is reached at about 33
_EXACT = 2**53


def struct_of(value: Mapping[str, Any], where: str) -> Struct:
    """InvalidArgument for what a Struct can't hold, or nests deeper than MAX_DEPTH."""
    made = Struct()
    _fill(made, value, where, 1)
    return made


def mapping_of(struct: Struct, where: str) -> dict[str, Any]:
    """InvalidArgument for numbers that are none, or what nests deeper than MAX_DEPTH."""
    return _mapping(struct, where, 1)


def _fill(made: Struct, value: Mapping[str, Any], where: str, depth: int) -> None:
    _check_depth(depth, where)
    for name, one in value.items():
        _set(made.fields[_text(name, where)], one, f"{where}.{plain(name, 80)}", depth)


def _set(to: Value, value: Any, where: str, depth: int) -> None:
    if value is None:
        to.null_value = 0  # type: ignore[assignment]
    elif isinstance(value, bool):
        to.bool_value = value
    elif isinstance(value, int | float):
        if abs(value) > _EXACT if isinstance(value, int) else not math.isfinite(value):
            raise InvalidArgument(
                f"{where}: {value} can't be said exactly: a number is finite, and an integer at "
                "most 2^53",
                field=where,
            )
        to.number_value = value
    elif isinstance(value, str):
        to.string_value = _text(value, where)
    elif isinstance(value, Mapping):
        to.struct_value.SetInParent()
        _fill(to.struct_value, value, where, depth + 1)
    elif isinstance(value, list | tuple):
        _check_depth(depth + 1, where)
        to.list_value.SetInParent()
        for number, one in enumerate(value):
            _set(to.list_value.values.add(), one, f"{where}.{number}", depth + 1)
    else:
        raise InvalidArgument(f"{where}: {type(value).__name__} is nothing of JSON", field=where)


def _mapping(struct: Struct, where: str, depth: int) -> dict[str, Any]:
    _check_depth(depth, where)
    return {
        name: _get(value, f"{where}.{plain(name, 80)}", depth)
        for name, value in sorted(struct.fields.items())
    }


def _get(value: Value, where: str, depth: int) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _mapping(value.struct_value, where, depth + 1)
    if kind == "list_value":
        _check_depth(depth + 1, where)
        values = value.list_value.values
        return [_get(one, f"{where}.{number}", depth + 1) for number, one in enumerate(values)]
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise InvalidArgument(f"{where}: {number} is no number of JSON", field=where)
        whole = number.is_integer() and abs(number) <= _EXACT
        return int(number) if whole else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{where}: holds a lone surrogate", field=where) from None
    return value


def _check_depth(depth: int, where: str) -> None:
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"{where}: nested deeper than {MAX_DEPTH} levels", field=where)
