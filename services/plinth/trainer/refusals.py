"""How a training specification is refused: the field, what is wrong, and what would be right."""

from __future__ import annotations

import math
from typing import NoReturn

from plinth.shared.api.words import said
from plinth.shared.errors import InvalidArgument
from plinth.v1 import jobs_pb2 as pb


def objective_of(spec: pb.TrainSpec) -> str:
    """The objective's word; InvalidArgument where none is given."""
    if not (word := said(spec, "objective")):
        refuse("objective", f"is not given; use one of {', '.join(pb.Objective.keys()[1:])}")
    return word


def in_range(name: str, value: float, low: float, high: float) -> None:
    """`value` must be a number from `low` to `high`."""
    if not (math.isfinite(value) and low <= value <= high):
        refuse(name, f"is {value}, must be {low:g} to {high:g}")


def refuse(name: str, why: str) -> NoReturn:
    """InvalidArgument for the field `name`."""
    raise InvalidArgument(f"{name}: {why}", field=f"spec.train.{name}")
