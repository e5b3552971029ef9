"""google.protobuf.Struct and the JSON values that it stands for.

A Struct has one kind of number, the double. Whole ones come back as int, so that what was counted
stays a count; larger ones than 2^53 are not exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value

_EXACT = 1 << 53


def to_struct(values: Mapping[str, Any]) -> Struct:
    """Of JSON-ready values; numbers that are not finite, which JSON lacks, become null."""
    return Struct(fields={key: _value(value) for key, value in values.items()})


def from_struct(struct: Struct) -> dict[str, Any]:
    """The values by name, as `json.loads` would give them."""
    return {key: _plain(struct.fields[key]) for key in struct.fields}


def _value(value: Any) -> Value:
    if value is None:
        return Value(null_value=NULL_VALUE)
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, int | float):
        return Value(number_value=value) if math.isfinite(value) else _value(None)
    if isinstance(value, str):
        return Value(string_value=value)
    if isinstance(value, Mapping):
        return Value(struct_value=to_struct(value))
    return Value(list_value=ListValue(values=[_value(one) for one in value]))


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _EXACT else number
        case "string_value":
            return value.string_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_plain(one) for one in value.list_value.values]
        case _:
            return None
