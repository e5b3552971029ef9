"""Digits as they are written in different countries: in groups, with a comma or a point, repeating,
as powers of ten. What could be a list, a date, a time or a version is no number.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 400  # of one number
_MAX_EXPONENT_DIGITS = 3

# What separates groups of three: a comma, a space that doesn't break, an apostrophe.
_NARROW = "\u00a0\u2009\u202f"
_FORMS = (
    rf"\d{{1,3}}(?:(?P<g>[,'\u2019{_NARROW}])\d{{3}})(?:(?P=g)\d{{3}})*(?:\.\d+)?",  # 1,234.5
    r"\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?",  # 12,34,567 as in India
    r"\d{1,3}(?:\.\d{3})+,\d+",  # 1.234,5
    rf"\d{{1,3}}(?:[{_NARROW}]\d{{3}})+,\d+",
    r"\d{1,3}(?:\.\d{3}){2,}",  # 1.234.567
    r"\d+(?:\.\d+)?",
    r"\.\d+",
)
# Behind digits: what makes them a part of something else (a date, a list, a time, a version).
_GOES_ON = r"(?![0-9]|[.,:'\u2019][0-9]|\.\.\.|\u2026)"
_DIGITS = [re.compile(form + _GOES_ON) for form in _FORMS]
# In groups by spaces, as far as they go: what ends within one would begin the next with its zeros.
SPACED = re.compile(r"\d{1,3}(?: \d{3}(?!\d))++(?P<point>\.\d+)?+")
_OVER = re.compile(r" ?/ ?[-\d.]")
_ENDS = re.compile(_GOES_ON)
_TRAILS_OFF = re.compile(r"(\d+)(?:\.\.\.|\u2026)")  # "It is 5..."
_DOTS = re.compile(r"\.\.\.|\u2026")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}(?!\d)")
_CENTS = re.compile(r"(\d+),(\d\d)(?![\d.,])")  # with a currency, so that it is no list
_CENTS_BEFORE = re.compile(r"(\d+),(\d\d)(?=\s?[€£])")
_REPEATING = re.compile(r"(\d+)\.(\d*)\\overline\{?(\d+)\}?")


class Ambiguous(Exception):
    """What stands there holds digits and is no number."""


def decimal(text: str, at: int, money: bool) -> tuple[Fraction, int, bool]:
    """Digits; with whether they are plain enough to be a part of a fraction."""
    if repeating := _REPEATING.match(text, at):
        return _repeating(*repeating.groups()), repeating.end(), False
    if _DATE.match(text, at):
        raise Ambiguous
    if money and (match := _CENTS.match(text, at)):
        return exact(f"{match[1]}.{match[2]}"), match.end(), False  # € 3,50
    # "1 100/200" is a mixed number.
    if (match := SPACED.match(text, at)) and not _OVER.match(text, match.end()):
        trails_off = not match["point"] and _DOTS.match(text, match.end())
        if not trails_off and not _ENDS.match(text, match.end()):
            raise Ambiguous
        return exact(match[0].replace(" ", "")), match.end(), not trails_off
    for form in _DIGITS:
        if match := form.match(text, at):
            return exact(_english(match[0])), match.end(), True
    if match := _TRAILS_OFF.match(text, at):
        return exact(match[1]), match.end(1), False
    if match := _CENTS_BEFORE.match(text, at):
        return exact(f"{match[1]}.{match[2]}"), match.end(), False
    raise Ambiguous


def exact(digits: str) -> Fraction:
    """Digits with a point at most. Ambiguous: more of them than a number has, whose value would
    take the square of their number to find (and which Python refuses from 4,300 on)."""
    if len(digits) > MAX_CHARS:
        raise Ambiguous
    return Fraction(digits)


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    shift: int = 10 ** len(fixed[:MAX_CHARS])
    value = exact(whole + fixed) / shift
    repeats = exact(period)  # before a power of so many digits is made
    nines: int = 10 ** len(period) - 1
    return value + repeats / (shift * nines)


def _english(digits: str) -> str:
    """Without groups, and with a decimal point."""
    commas, points = digits.count(","), digits.count(".")
    if commas == 1 and re.search(rf"[.{_NARROW}]", digits[: digits.index(",")]):
        digits = re.sub(rf"[.{_NARROW}]", "", digits).replace(",", ".")
    elif points > 1:
        digits = digits.replace(".", "")
    return re.sub(rf"[,'\u2019{_NARROW}]", "", digits)


def power_of_ten(exponent: str) -> Fraction:
    if len(exponent.lstrip("+-")) > _MAX_EXPONENT_DIGITS:
        raise Ambiguous
    return Fraction(10) ** int(exponent)
