"""How a training specification is refused: the field, what is wrong, and what would be right."""

from __future__ import annotations

import math
from typing import NoReturn

from plinth.shared.errors import InvalidArgument


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """`value` must be among `allowed`."""
    if value not in allowed:
        refuse(name, f"{value!r} is unknown; use {' or '.join(repr(a) for a in allowed)}")


def in_range(name: str, value: float, low: float, high: float) -> None:
    """`value` must be a number from `low` to `high`."""
    if not (math.isfinite(value) and low <= value <= high):
        refuse(name, f"is {value}, must be {low:g} to {high:g}")


def refuse(name: str, why: str) -> NoReturn:
    """InvalidArgument for the field `name`."""
    raise InvalidArgument(f"{name}: {why}", field=f"spec.train.{name}")
