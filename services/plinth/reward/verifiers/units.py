"""Units beside numbers, each by one name: "5 feet" is "5 ft", and "5 cm" is not "5 m".

Nothing is converted. What is no unit here is none: "5 apples" is no number with a unit, though
`\\text{apples}` beside a number is its unit, as LaTeX has it.
"""

from __future__ import annotations

import re

CURRENCY_SIGNS = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
CURRENCY = re.compile(r"(?:US)?\\?([$€£¥₹])\s{0,3}")
_NAMES = {
    "%": ("%", "percent", "per cent", "pct"),
    "degree": ("°", "degree", "degrees", "deg"),
    "dollar": ("dollar", "dollars", "USD"),
    "euro": ("euro", "euros", "EUR"),
    "cent": ("cent", "cents"),
    "m": ("m", "meter", "meters", "metre", "metres"),
    "cm": ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    "mm": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    "km": ("km", "kilometer", "kilometers", "kilometre", "kilometres"),
    "inch": ("inch", "inches"),
    "foot": ("foot", "feet", "ft"),
    "yard": ("yard", "yards", "yd"),
    "mile": ("mile", "miles", "mi"),
    "kg": ("kg", "kilogram", "kilograms"),
    "g": ("g", "gram", "grams"),
    "mg": ("mg", "milligram", "milligrams"),
    "pound": ("pound", "pounds", "lb", "lbs"),
    "ounce": ("ounce", "ounces", "oz"),
    "l": ("l", "L", "liter", "liters", "litre", "litres"),
    "ml": ("ml", "mL", "milliliter", "milliliters", "millilitre", "millilitres"),
    "second": ("s", "sec", "second", "seconds"),
    "minute": ("min", "minute", "minutes"),
    "hour": ("h", "hr", "hrs", "hour", "hours"),
    "day": ("day", "days"),
    "week": ("week", "weeks"),
    "month": ("month", "months"),
    "year": ("year", "years"),
    "mph": ("mph",),
    "kph": ("kph",),
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in names}
_WORD = "|".join(re.escape(name) for name in sorted(_UNITS, key=len, reverse=True))
_UNIT = re.compile(
    rf"\s{{0,3}}(?P<of>square|cubic|sq\.?|cu\.?)?\s{{0,3}}(?P<unit>{_WORD})(?![A-Za-z])"
    rf"(?P<power>\s{{0,3}}(?:\^\s{{0,3}}\{{?[23]\}}?|[²³]))?(?:\s{{0,3}}(?:/|per)\s{{0,3}}(?P<per>{_WORD})(?![A-Za-z]))?"
)
_PERCENT = re.compile(r"\s{0,3}\\%")
_MONEY_BEHIND = re.compile(r"\s?\\?([$€£¥₹])")
_TEXT_UNIT = re.compile(
    r"\s{0,3}\\(?:text|textbf|mathrm|mbox|textrm)"
    r"\{\s{0,3}(?P<words>[A-Za-z°%/. ]{1,40}?)\.?\s{0,3}\}"
    r"(?P<power>\^\{?[23]\}?)?"
)
_PER = re.compile(rf"\s{{0,3}}(?:/|per)\s{{0,3}}({_WORD})(?![A-Za-z])")
_DEGREES = re.compile(r"\s{0,3}\^\s{0,3}(?:\{\s{0,3}\\circ\s{0,3}\}|\\circ)")
_POWERS = {"square": "2", "sq": "2", "sq.": "2", "cubic": "3", "cu": "3", "cu.": "3"}
_SUPERSCRIPT = str.maketrans("²³", "23")


def unit_at(text: str, at: int) -> tuple[str, int]:
    """The unit that stands at `at`, by its one name, and where it ends; empty where there is none.
    One without a number of its own ("$5 per hour", "5/day") begins with a slash."""
    if match := _DEGREES.match(text, at):
        return "degree", match.end()
    if match := _PERCENT.match(text, at):
        return "%", match.end()
    if match := _TEXT_UNIT.match(text, at):
        return _of_text(match), match.end()
    if match := _UNIT.match(text, at):
        return _name(match), match.end()
    if match := _PER.match(text, at):
        return "/" + _UNITS[match[1]], match.end()
    match = _MONEY_BEHIND.match(text, at)
    return (CURRENCY_SIGNS[match[1]], match.end()) if match else ("", at)


def _of_text(match: re.Match[str]) -> str:
    known = _UNIT.fullmatch(match["words"])
    unit = _name(known) if known else match["words"].strip().rstrip("s")
    return unit + re.sub(r"\D", "", match["power"] or "")


def _name(match: re.Match[str]) -> str:
    power = re.sub(r"\D", "", (match["power"] or "").translate(_SUPERSCRIPT))
    power = power or _POWERS.get(match["of"] or "", "")
    per = f"/{_UNITS[match['per']]}" if match["per"] else ""
    return f"{_UNITS[match['unit']]}{power}{per}"
