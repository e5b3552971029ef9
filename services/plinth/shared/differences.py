"""How a figure stands beside another one, in words."""

from __future__ import annotations


def beside(below: float) -> str:
    """below: share by which it lies below the other. 0.12 is "12.0% below", -0.26 "26.0% above",
    and what rounds to nothing "equal to"."""
    told = f"{abs(below):.1%}"
    if told == "0.0%":
        return "equal to"
    return f"{told} {'below' if below > 0 else 'above'}"
