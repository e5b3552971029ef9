"""Enums of protos as the words that pipelines, commands and records use: OBJECTIVE_CLM is "clm"."""

from __future__ import annotations

from typing import Any

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


def check_enums(message: Any, path: str = "") -> None:
    """InvalidArgument for a value, anywhere in a request, that its enum does not have: a newer
    client's, which would else mean the same as none."""
    for field, value in message.ListFields():
        where = f"{path}{field.name}"
        if field.enum_type is not None:
            for one in value if field.is_repeated else (value,):
                if one not in field.enum_type.values_by_number:
                    names = [v.name for v in field.enum_type.values if v.number]
                    raise InvalidArgument(
                        f"{where}: {one} is no {field.enum_type.name}; there are "
                        f"{', '.join(names)}",
                        reason="ENUM_VALUE",
                        field=where,
                    )
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for at, one in enumerate(value) if field.is_repeated else ((None, value),):
                check_enums(one, f"{where}.{at}." if at is not None else f"{where}.")


def _word(enum: Any, name: str) -> str:
    prefix = "".join(f"_{c}" if c.isupper() else c for c in enum.DESCRIPTOR.name).strip("_").upper()
    return name.removeprefix(f"{prefix}_").lower()
