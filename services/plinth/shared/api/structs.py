"""google.protobuf.Struct as the objects that JSON and YAML make of the same text.

A Struct has one kind of number, the double: a whole one is read as an int, which is what whoever
wrote `"n": 30` meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct


def struct(given: Mapping[str, Any]) -> Struct:
    """Of an object that is JSON-ready. ValueError for what JSON has no word for."""
    made = Struct()
    json_format.ParseDict(dict(given), made)
    return made


def as_dict(given: Struct) -> dict[str, Any]:
    """JSON-ready."""
    return {name: _plain(value) for name, value in json_format.MessageToDict(given).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
