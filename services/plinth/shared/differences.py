"""How a figure stands beside another one, in words."""

from __future__ import annotations

_MOST_DIGITS = 15


def digits_apart(value: float, bar: float, least: int) -> int:
    """Decimals, at least so many, with which the two don't look alike unless they are."""
    enough = range(least, _MOST_DIGITS + 1)
    return next((n for n in enough if f"{value:.{n}f}" != f"{bar:.{n}f}"), least)


def beside(below: float, digits: int = 1) -> str:
    """below: share by which it lies below the other. 0.12 is "12.0% below", -0.26 "26.0% above",
    and what rounds to nothing "equal to". digits: decimals of the percentage."""
    told = f"{abs(below):.{digits}%}"
    if not float(told.removesuffix("%")):
        return "equal to"
    return f"{told} {'below' if below > 0 else 'above'}"
