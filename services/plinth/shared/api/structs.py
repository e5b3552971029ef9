"""google.protobuf.Struct, and the plain values that it holds.

A Struct knows no integers: its numbers are doubles. Of what a client says (`struct_of`,
`mapping_of`) a value that would not come through as it is is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from plinth.shared.errors import InvalidArgument, plain

MAX_DEPTH = 16  # protobuf's own limit of 100 messages is reached at about 33
_EXACT = 2**53


def struct(values: Mapping[str, Any] | None) -> Struct:
    """Numbers become doubles: whole ones beyond 2^53 are rounded, and those that are not finite,
    which JSON lacks, become null."""
    made = Struct()
    made.update(_finite(values or {}))
    return made


def plain_values(given: Struct) -> dict[str, Any]:
    """The values as JSON has them; whole numbers as int."""
    return {name: _plain(value) for name, value in given.fields.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain_values(value.struct_value)
    if kind == "list_value":
        held: ListValue = value.list_value
        return [_plain(one) for one in held.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def struct_of(value: Mapping[str, Any], where: str) -> Struct:
    """InvalidArgument for what a Struct can't hold exactly, or nests deeper than MAX_DEPTH."""
    _check(value, where, 0)
    return struct(value)


def mapping_of(given: Struct, where: str) -> dict[str, Any]:
    """InvalidArgument for numbers that are none, or what nests deeper than MAX_DEPTH."""
    _check_struct(given, where, 1)
    return plain_values(given)


def _check(value: Any, where: str, depth: int) -> None:
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > _EXACT if isinstance(value, int) else not math.isfinite(value):
            raise InvalidArgument(
                f"{where}: {value} can't be said exactly: a number is finite, and an integer at "
                "most 2^53",
                field=where,
            )
    elif isinstance(value, Mapping | list | tuple):
        _check_depth(depth + 1, where)
        named: Iterable[tuple[Any, Any]] = (
            value.items() if isinstance(value, Mapping) else enumerate(value)
        )
        for name, one in named:
            _check_text(str(name), where)
            _check(one, f"{where}.{plain(str(name), 80)}", depth + 1)
    elif value is not None and not isinstance(value, bool):
        raise InvalidArgument(f"{where}: {type(value).__name__} is nothing of JSON", field=where)


def _check_struct(given: Struct, where: str, depth: int) -> None:
    _check_depth(depth, where)
    for name, value in sorted(given.fields.items()):
        _check_value(value, f"{where}.{plain(name, 80)}", depth)


def _check_value(value: Value, where: str, depth: int) -> None:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        _check_struct(value.struct_value, where, depth + 1)
    elif kind == "list_value":
        _check_depth(depth + 1, where)
        for number, one in enumerate(value.list_value.values):
            _check_value(one, f"{where}.{number}", depth + 1)
    elif kind == "number_value" and not math.isfinite(value.number_value):
        raise InvalidArgument(f"{where}: {value.number_value} is no number of JSON", field=where)


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{where}: holds a lone surrogate", field=where) from None


def _check_depth(depth: int, where: str) -> None:
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"{where}: nested deeper than {MAX_DEPTH} levels", field=where)
