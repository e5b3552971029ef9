"""JSON of strangers: as `json.loads` reads it, but bounded, and never long in one piece.

`json.loads` holds the interpreter's lock until it is done, so that even in a thread 4 MB of `{},{}`
stop every stream for a tenth of a second, and they become 90 MB of objects. Here containers are
walked in Python, between whose steps the lock changes hands, and what is long and flat (text, token
ids) is read by the standard library's C code. Sizes are counted while they are read, so that what
is refused was not built before. https://www.rfc-editor.org/rfc/rfc8259
"""

from __future__ import annotations

import json
import math
import re
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any

MAX_DEPTH = 64  # containers in one another
MAX_VALUES = 32_768  # keys and values, but for the integers of a list
MAX_INTEGERS = 262_144  # of lists: token ids
MAX_KEYS = 1_024  # of one object
MAX_DIGITS = 100  # of a number
_RUN = 4_096  # integers that are read at once

_SPACE = re.compile(r"[ \t\n\r]*+")
_INTEGERS = re.compile(
    rf"(?:[ \t\n\r]*+-?(?:0|[1-9][0-9]{{0,17}}+)[ \t\n\r]*+,){{1,{_RUN}}}+", re.ASCII
)
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*+))(\.[0-9]++)?([eE][-+]?[0-9]++)?", re.ASCII)
_NO_JSON = re.compile(r"-?(?:NaN|Infinity|undefined|None|True|False|')")  # of other languages
_WORDS = {"true": True, "false": False, "null": None}


class JsonError(ValueError):
    """What is wrong, and at which character."""


def loads(text: str) -> Any:
    """The value that `text` spells. JsonError for what is no JSON or is over a bound."""
    return _Reader(text).whole()


class _Reader:
    """One text, read once from the left."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._values = 0
        self._integers = 0

    def whole(self) -> Any:
        self._skip()
        value = self._value()
        if self._at != len(self._text):
            raise self._wrong("something follows the value")
        return value

    def _value(self) -> Any:
        """The value here, and the white space behind it."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._wrong(f"there are more than {MAX_VALUES:,} keys and values")
        character = self._text[self._at : self._at + 1]
        if character == '"':
            value: Any = self._string()
        elif character == "{":
            value = self._nested(self._object)
        elif character == "[":
            value = self._nested(self._array)
        else:
            value = self._scalar()
        self._skip()
        return value

    def _nested(self, read: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"it is nested too deeply, over {MAX_DEPTH} times")
        self._at += 1
        self._skip()
        value = read()
        self._depth -= 1
        return value

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        count = 0
        if self._take("}"):
            return found
        while True:
            count += 1
            if count > MAX_KEYS:
                raise self._wrong(f"an object has more than {MAX_KEYS:,} keys")
            self._values += 1
            if self._text[self._at : self._at + 1] != '"':
                raise self._wrong("a key in double quotes is missing")
            key = self._string()
            self._skip()
            if not self._take(":"):
                raise self._wrong("':' is missing")
            found[key] = self._value()  # of two with one name the last, as everywhere
            if self._take("}"):
                return found
            if not self._take(","):
                raise self._wrong("',' or '}' is missing")

    def _array(self) -> list[Any]:
        found: list[Any] = []
        if self._take("]"):
            return found
        while True:
            while run := _INTEGERS.match(self._text, self._at):
                found += self._integers_of(run)
            self._skip()
            found.append(self._value())
            if self._take("]"):
                return found
            if not self._take(","):
                raise self._wrong("',' or ']' is missing")

    def _integers_of(self, run: re.Match[str]) -> list[int]:
        values: list[int] = json.loads(f"[{run[0][:-1]}]")
        self._at = run.end()
        self._integers += len(values)
        if self._integers > MAX_INTEGERS:
            raise self._wrong(f"its lists have more than {MAX_INTEGERS:,} integers")
        return values

    def _string(self) -> str:
        try:
            value: str
            value, self._at = scanstring(self._text, self._at + 1, True)
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise self._wrong(error.msg) from None
        return value

    def _scalar(self) -> Any:
        for word, meant in _WORDS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return meant
        number = _NUMBER.match(self._text, self._at)
        if number is None and (other := _NO_JSON.match(self._text, self._at)):
            raise self._wrong(f"{other[0]} is no JSON")
        if number is None:
            raise self._wrong("a value is missing")
        if len(number[0]) > MAX_DIGITS:
            raise self._wrong(f"a number has more than {MAX_DIGITS} digits")
        whole, fraction, exponent = number.groups()
        value: int | float = (
            int(whole) if fraction is None and exponent is None else float(number[0])
        )
        if isinstance(value, float) and not math.isfinite(value):
            raise self._wrong("a number is out of range")
        self._at = number.end()
        return value

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        assert space is not None, "it matches nothing too"
        self._at = space.end()

    def _take(self, character: str) -> bool:
        """Whether `character` is here; then it is passed, with the white space behind it."""
        if not self._text.startswith(character, self._at):
            return False
        self._at += 1
        self._skip()
        return True

    def _wrong(self, what: str) -> JsonError:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        return JsonError(f"{what} (line {line}, column {column})")
