"""Filters of lists: `state = RUNNING AND create_time >= "2026-11-01T00:00:00Z"` (of AIP-160, what
lists need: comparisons of fields, joined by AND).

`=` of a text with a star at its end compares the beginning (`name = "chat*"`); `:` asks whether a
repeated field or a map has the value.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plinth.shared.errors import InvalidArgument

_MAX_CHARS = 2000
_TERM = re.compile(
    r"""\s*(?P<field>[a-z_][a-z0-9_.]*)\s*(?P<op>!=|<=|>=|=|<|>|:)\s*"""
    r"""(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]+)\s*"""
)
_AND = re.compile(r"AND\b")
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Read = Callable[[Any], Any]


@dataclass(frozen=True)
class Field:
    """What a filter may ask of a resource.

    read: its value: str, bool, int, float, an aware datetime, or a list of str; None: not set.
    words: the values that there are, where it is an enum.
    """

    read: Read
    kind: type
    words: tuple[str, ...] = ()


class Filters:
    """The fields of one list that a filter may name."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields

    def parse(self, text: str) -> Callable[[Any], bool]:
        """Whether a resource is asked for. InvalidArgument says where the filter is wrong."""
        if len(text) > _MAX_CHARS:
            raise _wrong(f"has at most {_MAX_CHARS} characters, not {len(text)}")
        terms: list[Callable[[Any], bool]] = []
        at = 0
        while at < len(text.rstrip()):
            if terms:
                joined = _AND.match(text, at)
                if joined is None:
                    raise _wrong(f"has AND between comparisons, not {text[at : at + 20]!r}")
                at = joined.end()
            term = _TERM.match(text, at)
            if term is None:
                raise _wrong(
                    f'is comparisons like `name = "chat*"` joined by AND, not {text[at:][:40]!r}'
                )
            terms.append(self._term(term["field"], term["op"], term["value"]))
            at = term.end()
        return lambda resource: all(term(resource) for term in terms)

    def _term(self, name: str, op: str, raw: str) -> Callable[[Any], bool]:
        field = self._fields.get(name)
        if field is None:
            raise _wrong(f"knows {', '.join(sorted(self._fields))}, not {name!r}")
        if (op == ":") != (field.kind is list):
            raise _wrong(f"compares {name} by {':' if field.kind is list else '= != < <= > >='}")
        quoted = raw.startswith('"')
        text = re.sub(r"\\(.)", r"\1", raw[1:-1]) if quoted else raw
        wanted = _value(name, field, text)
        if op == ":":
            return lambda resource: wanted in field.read(resource)
        if op in _ORDER:
            if field.words or field.kind is bool:
                raise _wrong(f"compares {name} by = and != alone, since it has no order")
            return lambda resource: _ordered(_ORDER[op], field.read(resource), wanted)
        if field.kind is str and text.endswith("*") and not field.words:
            begins = text[:-1]
            return lambda resource: str(field.read(resource)).startswith(begins) == (op == "=")
        return lambda resource: (field.read(resource) == wanted) == (op == "=")


def _ordered(order: Callable[[Any, Any], bool], value: Any, wanted: Any) -> bool:
    """What is not set comes neither before nor after anything (AIP-160)."""
    return value is not None and order(value, wanted)


def _value(name: str, field: Field, text: str) -> Any:
    if field.words and text not in field.words:
        raise _wrong(f"knows of {name}: {', '.join(field.words)}; not {text!r}")
    try:
        if field.kind is bool:
            return {"true": True, "false": False}[text]
        if field.kind is datetime:
            moment = datetime.fromisoformat(text)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return text if field.kind in (str, list) else field.kind(text)
    except (ValueError, KeyError):
        shown = {bool: "true or false", datetime: "a time like 2026-11-01T00:00:00Z"}
        raise _wrong(
            f"compares {name} with {shown.get(field.kind, 'a number')}, not {text!r}"
        ) from None


def _wrong(what: str) -> InvalidArgument:
    return InvalidArgument(f"filter {what}", reason="FILTER", field="filter")
