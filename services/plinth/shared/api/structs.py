"""google.protobuf.Struct, and the plain values that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value


def struct(values: Mapping[str, Any] | None) -> Struct:
    """Numbers become doubles: whole ones beyond 2^53 are rounded."""
    made = Struct()
    made.update(values or {})
    return made


def plain_values(given: Struct) -> dict[str, Any]:
    """The values as JSON has them; whole numbers as int."""
    return {name: _plain(value) for name, value in given.fields.items()}


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
