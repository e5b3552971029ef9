"""Messages of the API as the words and numbers that pipelines, manifests and configurations use.

An enum's value is its word ("OBJECTIVE_CLM" is "clm"), a duration its seconds, a Struct a dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from plinth.shared.api import enums
from plinth.shared.api.structs import plain_values
from plinth.shared.api.times import duration, seconds

M = TypeVar("M", bound=Message)
_DURATION: str = Duration.DESCRIPTOR.full_name
_STRUCT: str = Struct.DESCRIPTOR.full_name


def said(message: Message, field: str) -> str:
    """The word of an enum field; empty for what is unspecified. InvalidArgument for a number that
    the enum lacks."""
    return enums.word(_Enum(message.DESCRIPTOR.fields_by_name[field]), getattr(message, field))


def given(kind: type[M], values: Mapping[str, Any]) -> M:
    """A message of that kind with the `values` by field that are not None: enums by their words
    (empty: unspecified), durations in seconds (0: not set)."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        field = kind.DESCRIPTOR.fields_by_name[name]
        if field.enum_type is not None and value is not None:
            fields[name] = enums.number(_Enum(field), value, name)
        elif field.message_type is not None and field.message_type.full_name == _DURATION:
            fields[name] = duration(value) if value else None
        else:
            fields[name] = value
    return kind(**fields)


def in_words(message: Message) -> dict[str, Any]:
    """What is set in a message, JSON-ready, by field: optional fields that were given, others that
    are not zero."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        return {key: _one(kind, value[key]) for key in sorted(value)}
    return [_one(field, one) for one in value] if field.is_repeated else _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return enums.word(_Enum(field), value)
    if field.message_type is None:
        return value
    if field.message_type.full_name == _DURATION:
        return seconds(value)
    return plain_values(value) if field.message_type.full_name == _STRUCT else in_words(value)


class _Enum:
    """An enum by its descriptor, as `enums` takes it."""

    def __init__(self, field: Any) -> None:
        self.DESCRIPTOR = field.enum_type
