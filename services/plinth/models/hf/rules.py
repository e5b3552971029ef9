"""What a key of a `config.json` may be where only some values are computed. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class KeyRule(NamedTuple):
    """What a key may be: `holds(value, config)`, in words `wanted`."""

    holds: Callable[[Any, Mapping[str, Any]], bool]
    wanted: str


def one_of(*values: Any) -> KeyRule:
    """One of these."""
    return KeyRule(lambda value, _: value in values, " or ".join(repr(v) for v in values))
