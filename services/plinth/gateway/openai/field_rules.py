"""What becomes of each field that a client can send, whether Plinth has it or not.

A field that is known and would change the answer is honoured, or refused by its name. One whose
value says what happens anyway is taken. One that has no effect here, and one that nobody knows, is
ignored, and the client is told so; with `gateway.unknown_fields: refuse` it is an error. Which are
known is in `known_fields.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plinth.shared.errors import InvalidArgument

UnknownFields = Literal["ignore", "refuse"]
MAX_TOLD = 16  # names in a header
MAX_NAME_CHARS = 64


@dataclass(frozen=True)
class FieldRule:
    """A field that Plinth does not have. null always says what happens anyway."""

    inert: Callable[[Any], bool]  # whether a value does, too
    refusal: str = ""  # of any other value; empty: it has no effect, and is told


Rules = Mapping[str, FieldRule]


class Ignored:
    """The names of what one request brought for nothing."""

    def __init__(self, unknown: UnknownFields = "ignore") -> None:
        self._unknown = unknown
        self._names: dict[str, None] = {}
        self._more = 0

    def add(self, name: str, path: str, *, known: bool) -> None:
        """`name` is without indices ("messages.name"), `path` with them. InvalidArgument where
        fields without effect are refused."""
        if self._unknown == "refuse":
            what = "it has no effect here" if known else "this parameter is not known"
            raise InvalidArgument(
                f"{_shown(path)}: {what}; leave it out (gateway.unknown_fields is 'refuse')",
                reason="UNKNOWN_PARAMETER",
                field=_shown(path),
            )
        shown = _shown(name)
        if shown in self._names:
            return
        if len(self._names) >= MAX_TOLD:
            self._more += 1
        else:
            self._names[shown] = None

    @property
    def names(self) -> list[str]:
        """At most MAX_TOLD, in the order in which they came."""
        return list(self._names)

    @property
    def header(self) -> str:
        """For `x-plinth-ignored`: names, and how many more there are; empty without any."""
        more = [f"+{self._more}"] if self._more else []
        return ", ".join([*self._names, *more])


def sift(
    given: Mapping[str, Any],
    had: Collection[str],
    rules: Rules,
    ignored: Ignored,
    *,
    name: str = "",
    path: str = "",
) -> dict[str, Any]:
    """The fields of `given` that Plinth has (`had`). InvalidArgument for what is refused; what has
    no effect is added to `ignored`. `name` and `path` say where `given` stands in the body."""
    kept = {}
    for key, value in given.items():
        if key in had:
            kept[key] = value
            continue
        rule = rules.get(key)
        if rule is not None and (value is None or rule.inert(value)):
            continue
        if rule is not None and rule.refusal:
            raise unsupported(f"{path}{key}", rule.refusal)
        ignored.add(f"{name}{key}", f"{path}{key}", known=rule is not None)
    return kept


def unsupported(name: str, why: str) -> InvalidArgument:
    """A parameter whose being ignored would change what the client meant."""
    return InvalidArgument(f"{name}: {why}", reason="UNSUPPORTED_PARAMETER", field=name)


def _shown(name: str) -> str:
    """A client's name as a header can carry it."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "?" for c in name[:256])
    return plain[:MAX_NAME_CHARS] or "?"
