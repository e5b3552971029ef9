"""Enums of protos as the words that pipelines, commands and records use: OBJECTIVE_CLM is "clm"."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from plinth.shared.errors import InvalidArgument, plain


def words(enum: Any) -> tuple[str, ...]:
    """All words of an enum, in the order of its numbers, without that for "unspecified"."""
    return tuple(_word(enum, value.name) for value in enum.DESCRIPTOR.values if value.number)


def word(enum: Any, number: int) -> str:
    """The word for a value; empty for 0. InvalidArgument for a number that the enum lacks."""
    if not number:
        return ""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    if value is None:
        raise InvalidArgument(
            f"{enum.DESCRIPTOR.name} has no value {number}; it has {', '.join(words(enum))}",
            reason="ENUM_VALUE",
        )
    return _word(enum, value.name)


def number(enum: Any, said: str, field: str = "") -> int:
    """The value for a word; 0 for an empty one. InvalidArgument with the words that there are."""
    if not said:
        return 0
    for value in enum.DESCRIPTOR.values:
        if value.number and _word(enum, value.name) == said:
            return int(value.number)
    raise InvalidArgument(
        f"{field or enum.DESCRIPTOR.name} is one of {', '.join(words(enum))}; "
        f"not {plain(said, 80)!r}",
        reason="ENUM_VALUE",
        field=field,
    )


def check_enums(message: Message, path: str = "") -> None:
    """InvalidArgument for a value, anywhere in a request, that its enum does not have: a newer
    client's, which would else mean the same as none. Messages that can hold no enum cost nothing.
    """
    for field in _looked_at(message.DESCRIPTOR):
        where = f"{path}{field.name}"
        in_map = _value_of_map(field)
        kind = in_map or field
        if not (field.is_repeated or field.enum_type or message.HasField(field.name)):
            continue
        value = getattr(message, field.name)
        if in_map is not None:
            parts: Iterable[tuple[str, Any]] = ((f"{where}.{key}", value[key]) for key in value)
        elif field.is_repeated:
            parts = ((f"{where}.{at}", one) for at, one in enumerate(value))
        else:
            parts = ((where, value),)
        for place, one in parts:
            if kind.enum_type is None:
                check_enums(one, f"{place}.")
            elif one and one not in kind.enum_type.values_by_number:
                names = [v.name for v in kind.enum_type.values if v.number]
                raise InvalidArgument(
                    f"{place}: {one} is no {kind.enum_type.name}; there are {', '.join(names)}",
                    reason="ENUM_VALUE",
                    field=place,
                )


@cache
def _looked_at(kind: Descriptor) -> tuple[FieldDescriptor, ...]:
    """The fields that hold enums, at any depth. No others are read: a text would be copied."""
    if not _holds_enums(kind):
        return ()
    found = []
    for field in kind.fields:
        what = _value_of_map(field) or field
        if what.enum_type is not None or (what.message_type and _holds_enums(what.message_type)):
            found.append(field)
    return tuple(found)


@cache
def _holds_enums(kind: Descriptor) -> bool:
    """Whether a message of that kind can hold an enum, at any depth. Google's own (Struct has one
    for null) are not looked into."""
    if kind.file.package == "google.protobuf":
        return False
    seen, waiting = {kind.full_name}, [kind]
    while waiting:
        for field in waiting.pop().fields:
            if field.enum_type is not None:
                return True
            inner = field.message_type
            if inner is None or inner.file.package == "google.protobuf":
                continue
            if inner.full_name not in seen:
                seen.add(inner.full_name)
                waiting.append(inner)
    return False


def _value_of_map(field: FieldDescriptor) -> FieldDescriptor | None:
    """What the values of a map are; None for other fields."""
    kind = field.message_type
    is_map = kind is not None and kind.GetOptions().map_entry
    return kind.fields_by_name["value"] if kind is not None and is_map else None


def _word(enum: Any, name: str) -> str:
    prefix = "".join(f"_{c}" if c.isupper() else c for c in enum.DESCRIPTOR.name).strip("_").upper()
    return name.removeprefix(f"{prefix}_").lower()
