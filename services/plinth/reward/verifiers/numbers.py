"""Numbers as people and models write them, read exactly: fractions, mixed numbers, digits in
groups, percents, money, units, LaTeX, powers of ten.

What has two readings is none: "3,5" (three and a half, or two numbers), "1-1/2", "2x", "1/2/2024",
"10:30". GSM8K's graders (Cobbe et al. 2021; lm-eval's) look for digits, and so take the 4 of 3/4
and the 3 of "3 million"; MATH's (Hendrycks et al. 2021) compares text; Math-Verify takes "3,5" for
a decimal. A reward is not given on a guess.

https://arxiv.org/abs/2103.03874, https://arxiv.org/abs/2110.14168, ISO 80000-1 (7.3)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from plinth.reward.verifiers.decimals import (
    MAX_CHARS,
    SPACED,
    Ambiguous,
    decimal,
    exact,
    power_of_ten,
)
from plinth.reward.verifiers.units import CURRENCY, CURRENCY_SIGNS, unit_at

_TAIL_CHARS = 10 * MAX_CHARS
_MAX_DEPTH = 4  # of fractions within fractions


@dataclass(frozen=True)
class Quantity:
    """unit: "%", "dollar", "cm", …; empty where none is said."""

    value: Fraction
    unit: str = ""

    def equals(self, right: Quantity, absolute: float = 0.0, relative: float = 0.0) -> bool:
        """Whether |self - right| ≤ max(absolute, relative · |right|), and no unit differs.

        A unit that one side leaves out is the other's. A percent sign that one side leaves out may
        mean both: to "How many percent?" 50 is as right as 50 %, and where 0.5 is, 50 % is.
        """
        for mine, other in zip(self.unit.split("/"), right.unit.split("/"), strict=False):
            if mine != other and mine and other:
                return False
        readings = [(self.value, right.value)]
        if self.unit != right.unit and "%" in (self.unit, right.unit):
            readings.append((self._share(), right._share()))
        limits = Fraction(absolute), Fraction(relative)
        return any(
            abs(mine - other) <= max(limits[0], limits[1] * abs(other)) for mine, other in readings
        )

    def _share(self) -> Fraction:
        return self.value / 100 if self.unit == "%" else self.value


# -- written forms ---------------------------------------------------------------------------

_OVER = re.compile(r" ?/ ?(?=[-\d.])")
_GAP = re.compile(r"\s{0,3}")
_SIMPLE = re.compile(r"(\d+)/(\d+)(?![\d/])")
_HYPHENED = re.compile(r"-\d+/\d")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_VULGAR = {c: Fraction(a, b) for c, a, b in (
    ("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅖", 2, 5),
    ("⅗", 3, 5), ("⅘", 4, 5), ("⅙", 1, 6), ("⅚", 5, 6), ("⅐", 1, 7), ("⅛", 1, 8), ("⅜", 3, 8),
    ("⅝", 5, 8), ("⅞", 7, 8), ("⅑", 1, 9), ("⅒", 1, 10),
)}  # fmt: skip
_POWER = re.compile(
    r"(?:\s{0,3}(?:[×·x*]|\\times|\\cdot)\s{0,3})?(?P<ten>10)"
    r"(?:\s{0,3}(?:\^|\*\*)\s{0,3}(?:\{\s{0,3}(?P<braced>[+-]?\d+)\s{0,3}\}|(?P<bare>[+-]?\d+))|(?P<super>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))"
)
_E = re.compile(r"[eE]([+-]?\d+)(?![0-9A-Za-z.])")
_SIGN = re.compile(r"([-+\u2212])\s{0,3}")
_FRAC = re.compile(r"\\[cdt]?frac\s{0,3}")
_MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
               "trillion": 10**12, "dozen": 12}  # fmt: skip
_MAGNITUDE = re.compile(rf"\s{{0,3}}({'|'.join(_MAGNITUDES)})s?\b", re.IGNORECASE)

# Behind a number: what makes it a part of a term.
_TERM = re.compile(
    r"\s{0,3}(?:\\(?:sqrt|pi|log|ln|sin|cos|tan|binom|theta|alpha)|[π√^!])|[A-Za-z_]|\s{0,3}\*\s{0,3}[A-Za-z]"
)
_DRESSING = str.maketrans({"\u2212": "-", "\u2044": "/", "\uff0d": "-"})
_LATEX_SPACE = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\})(?=\d{3}(?!\d))")


def number(text: str) -> Quantity | None:
    """All of `text` as one number with its unit; None where it is none, or may mean two things."""
    if len(text) > 4 * MAX_CHARS or not (plain := _undressed(text)) or len(plain) > MAX_CHARS:
        return None
    try:
        found, end = _read(plain, 0)
    except Ambiguous:
        return None
    return found if end == len(plain) else None


def last_number(text: str) -> str | None:
    """The last number of a text with all that belongs to it, as it is written there, for `number`.
    What holds digits and is no number is given too: an earlier number is not the answer then."""
    plain = _plain(text)
    # Nearly always it stands near the end. What begins at the edge may be a part of something.
    tail = max(0, len(plain) - _TAIL_CHARS)
    for begin in (max(plain.rfind(space, 0, tail) + 1 for space in " \n\t"), 0):
        found = None
        for found in _written(plain, begin):  # noqa: B007 - the last one
            pass
        if found is not None and (begin == 0 or found[0] > begin + MAX_CHARS):
            return plain[found[0] : found[1]]
    return None


def _written(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Where each number begins and ends."""
    while match := _START.search(text, at):
        begin = match.start()
        try:
            _, end = _read(text, begin)
        except Ambiguous:
            grouped = SPACED.match(text, match.end() - 1)
            behind = grouped.end() if grouped else begin + 1
            end = _END_OF_TERM.match(text, behind).end()  # type: ignore[union-attr]
        if not _ORDINAL.fullmatch(text, begin, end):
            yield begin, end
        at = max(end, begin + 1)


# Where a number may begin: not within a word, a name or an index.
_START = re.compile(
    r"(?<![A-Za-z0-9_^\\.])(?:(?<![0-9)\]}])[-+](?=[$€£¥₹\\.0-9½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒]))?"
    r"(?:(?:US)?\\?[$€£¥₹]\s?[-+]?)?(?:\d|\.\d|[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒]|\\[cdt]?frac|\\sqrt|\\log|\\ln)"
)
_END_OF_TERM = re.compile(
    r"(?:[0-9A-Za-z_π√^\\{}²³]|[.,:/'\u2019-](?=[0-9A-Za-z\\{])|\.\.\.(?=\W|$)|\u2026)*"
)
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)")


# -- reading -------------------------------------------------------------------------------


def _read(text: str, at: int) -> tuple[Quantity, int]:
    """The quantity that begins at `at`, and where it ends. Ambiguous: there is none."""
    sign, at = _sign(text, at)
    unit = ""
    if money := CURRENCY.match(text, at):
        unit, at = CURRENCY_SIGNS[money[1]], money.end()
        second, at = _sign(text, at)
        if sign and second:
            raise Ambiguous
        sign = sign or second
    value, at = _magnitude(text, at, 0, money=bool(unit))
    if word := _MAGNITUDE.match(text, at):
        value, at = value * _MAGNITUDES[word[1].lower()], word.end()
    said, at = unit_at(text, at)
    if unit and said and not said.startswith("/") and said != unit:
        raise Ambiguous
    if _TERM.match(text, at) and not _is_punctuation(text, at):
        raise Ambiguous
    whole = unit + said if said.startswith("/") else said or unit
    return Quantity(-value if sign == "-" else value, whole), at


def _is_punctuation(text: str, at: int) -> bool:
    """An exclamation at the end of a sentence, where a factorial would go on."""
    return text[at] == "!" and at > 0 and (at + 1 == len(text) or text[at + 1].isspace())


def _sign(text: str, at: int) -> tuple[str, int]:
    match = _SIGN.match(text, at)
    return (match[1], match.end()) if match else ("", at)


def _magnitude(text: str, at: int, depth: int, *, money: bool = False) -> tuple[Fraction, int]:
    """A number without a sign: plain, a fraction or a mixed number."""
    if depth > _MAX_DEPTH:
        raise Ambiguous
    if part := _part(text, at, depth):
        return part
    power = _POWER.match(text, at)
    if power and power.start("ten") == at:
        return _ten_to(power), power.end()
    value, end, plain = decimal(text, at, money)
    power = _POWER.match(text, end)
    if power and power.start("ten") > end:
        return value * _ten_to(power), power.end()
    if exponent := _E.match(text, end):
        return value * power_of_ten(exponent[1]), exponent.end()
    return _with_fraction(value, text, end, depth) if plain else (value, end)


def _part(text: str, at: int, depth: int) -> tuple[Fraction, int] | None:
    """A fraction that is written as one."""
    if at < len(text) and text[at] in _VULGAR:
        return _VULGAR[text[at]], at + 1
    return _latex_fraction(text, at, depth) if _FRAC.match(text, at) else None


def _with_fraction(value: Fraction, text: str, end: int, depth: int) -> tuple[Fraction, int]:
    """`value`, or the fraction that it is over, or the mixed number whose whole part it is."""
    if slash := _OVER.match(text, end):
        sign, at = _sign(text, slash.end())
        below, after, _ = decimal(text, at, False)
        if below == 0 or _OVER.match(text, after):
            raise Ambiguous
        return value / (-below if sign == "-" else below), after
    at = _GAP.match(text, end).end()  # type: ignore[union-attr]
    part = _part(text, at, depth)
    if part is None and at > end and (match := _SIMPLE.match(text, at)):
        above, below = exact(match[1]), exact(match[2])
        if below == 0:
            raise Ambiguous
        part = above / below, match.end()
    elif _HYPHENED.match(text, end):
        raise Ambiguous  # 1-1/2: one and a half, or a half
    if part is None:
        return value, end
    if value.denominator != 1 or not 0 < part[0] < 1:
        raise Ambiguous  # 2 3/2: a product, or two numbers
    return value + part[0], part[1]


def _latex_fraction(text: str, at: int, depth: int) -> tuple[Fraction, int]:
    """\\frac{3}{4}, \\frac34, \\frac{-3}{4}."""
    match = _FRAC.match(text, at)
    assert match is not None
    above, at = _argument(text, match.end(), depth)
    below, at = _argument(text, at, depth)
    if below == 0:
        raise Ambiguous
    return above / below, at


def _argument(text: str, at: int, depth: int) -> tuple[Fraction, int]:
    while at < len(text) and text[at] == " ":
        at += 1
    if at < len(text) and text[at].isdecimal():  # not ², which is a digit too
        return Fraction(text[at]), at + 1
    if at >= len(text) or text[at] != "{":
        raise Ambiguous
    sign, begin = _sign(text, at + 1)
    value, end = _magnitude(text, begin, depth + 1)
    if not text.startswith("}", end):
        raise Ambiguous
    return -value if sign == "-" else value, end + 1


def _ten_to(match: re.Match[str]) -> Fraction:
    exponent = match["braced"] or match["bare"] or match["super"].translate(_SUPERSCRIPT)
    return power_of_ten(exponent)


# -- dressing ------------------------------------------------------------------------------

_WRAPPED = re.compile(r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf|mbox)\{(.*)\}", re.DOTALL)
_NAMED = re.compile(r"[A-Za-z]\w?\s*=\s*")
# A formula as pandoc tells it from money: no space within its signs, no digit behind them.
_FORMULA = re.compile(r"(?<![\\$])\$\s?((?=\S)[^$]*?(?<=[^\s\\])) ?\$(?!\d)")
_BRACKETS = re.compile(r"\\[()\[\]]")
_SPACING = re.compile(r"\\(?:left|right|displaystyle)|\\[,;:! ]|~")


def _plain(text: str) -> str:
    """Without what makes a formula of it, so that a $ which is left is money."""
    text = _FORMULA.sub(r"\1", text.replace("$$", "$"))
    text = _LATEX_SPACE.sub("", _BRACKETS.sub(" ", text).translate(_DRESSING))
    # A dash at the front of digits is a minus; between them, a range.
    return re.sub(r"(?<![\w)])\u2013(?=[\d.$\\])", "-", text)


def _undressed(text: str) -> str:
    """Without emphasis, formula signs, boxes, the name of what it is, and the end of a sentence."""
    plain = _plain(text).strip()
    while True:
        before = plain
        plain = plain.strip().strip("*`").strip()
        if plain.endswith(".") and not plain.endswith(".."):
            plain = plain[:-1]
        if match := _WRAPPED.fullmatch(plain):
            plain = match[1]
        if match := _NAMED.match(plain):
            plain = plain[match.end() :]
        plain = _SPACING.sub(" ", plain).strip()
        if plain == before:
            return plain
