"""JSON of strangers: as `json.loads` reads it, but bounded, and never long in one piece.

`json.loads` holds the interpreter's lock until it is done, so that even in a thread 4 MB of `{},{}`
stop every stream for a tenth of a second, and they become 90 MB of objects. Here containers are
walked in Python, between whose steps the lock changes hands, and what is long and flat (text, token
ids) is read by the standard library's C code. Sizes are counted while they are read, so that what
is refused was not built before. It is read from bytes: as text, one emoji makes each character of
a body four bytes. https://www.rfc-editor.org/rfc/rfc8259
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

_FOLLOWING = bytes(range(0x80, 0xC0))  # all but the first byte of a character
_CHUNK = 64 << 10  # bytes that are checked at once

_SPACE = re.compile(rb"[ \t\n\r]*+")
_INTEGERS = re.compile(rb"(?:[ \t\n\r]*+-?(?:0|[1-9][0-9]{0,17}+)[ \t\n\r]*+,){1,%d}+" % _RUN)
_NUMBER = re.compile(rb"(-?(?:0|[1-9][0-9]*+))(\.[0-9]++)?([eE][-+]?[0-9]++)?")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*+')  # of a string
# A piece of a string that ends neither in a character nor in an escape, nor in a pair of two.
_PIECE = re.compile(
    rb"""(?:[^"\\\x00-\x1f]{1,1024}+[\x80-\xbf]*+
          |\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}
          |\\u[0-9a-fA-F]{4}
          |\\["\\/bfnrt]){1,64}+""",
    re.VERBOSE,
)
_WORDS = {b"true": True, b"false": False, b"null": None}


class JsonError(ValueError):
    """What is wrong, and at which character."""


def check_utf8(raw: bytes | bytearray) -> None:
    """UnicodeDecodeError, with the place in `raw`, for what is no UTF-8."""
    at = 0
    while at < len(raw):
        end = min(at + _CHUNK, len(raw))
        while end < len(raw) and raw[end] & 0xC0 == 0x80 and end > at + _CHUNK - 4:
            end -= 1  # not in the middle of a character
        try:
            raw[at:end].decode()
        except UnicodeDecodeError as error:
            start = at + error.start
            raise UnicodeDecodeError("utf-8", b"", start, start + 1, _why(raw, start)) from None
        at = end


def _why(raw: bytes | bytearray, start: int) -> str:
    """What is wrong with the character at `start`, however the bytes were cut."""
    try:
        raw[start : start + 4].decode()
    except UnicodeDecodeError as error:
        return error.reason
    raise AssertionError("it was wrong")


def loads(raw: bytes | bytearray) -> Any:
    """The value that `raw`, which is UTF-8, spells. JsonError for what is no JSON or is over a
    bound."""
    return _Reader(raw).whole()


class _Reader:
    """One text, read once from the left."""

    def __init__(self, raw: bytes | bytearray) -> None:
        self._raw = raw
        self._at = 0
        self._depth = 0
        self._values = 0
        self._integers = 0

    def whole(self) -> Any:
        self._skip()
        value = self._value()
        if self._at != len(self._raw):
            raise self._wrong("something follows the value")
        return value

    def _value(self) -> Any:
        """The value here, and the white space behind it."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._wrong(f"there are more than {MAX_VALUES:,} keys and values")
        character = self._raw[self._at : self._at + 1]
        if character == b'"':
            value: Any = self._string()
        elif character == b"{":
            value = self._nested(self._object)
        elif character == b"[":
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
        if self._take(b"}"):
            return found
        while True:
            count += 1
            if count > MAX_KEYS:
                raise self._wrong(f"an object has more than {MAX_KEYS:,} keys")
            self._values += 1
            if not self._raw.startswith(b'"', self._at):
                raise self._wrong("a key in double quotes is missing")
            key = self._string()
            self._skip()
            if not self._take(b":"):
                raise self._wrong("':' is missing")
            found[key] = self._value()  # of two with one name the last, as everywhere
            if self._take(b"}"):
                return found
            if not self._take(b","):
                raise self._wrong("',' or '}' is missing")

    def _array(self) -> list[Any]:
        found: list[Any] = []
        if self._take(b"]"):
            return found
        while True:
            while run := _INTEGERS.match(self._raw, self._at):
                found += self._integers_of(run)
            self._skip()
            found.append(self._value())
            if self._take(b"]"):
                return found
            if not self._take(b","):
                raise self._wrong("',' or ']' is missing")

    def _integers_of(self, run: re.Match[bytes]) -> list[int]:
        values: list[int] = json.loads(b"[%b]" % run[0][:-1])
        self._at = run.end()
        self._integers += len(values)
        if self._integers > MAX_INTEGERS:
            raise self._wrong(f"its lists have more than {MAX_INTEGERS:,} integers")
        return values

    def _string(self) -> str:
        start = self._at + 1
        end = self._passed(_PLAIN, start)
        if self._raw.startswith(b'"', end):
            self._at = end + 1
            return self._raw[start:end].decode()
        parts = []
        self._at = start
        while piece := _PIECE.match(self._raw, self._at):
            parts.append(_unescaped(piece[0].decode()))
            self._at = piece.end()
        if not self._raw.startswith(b'"', self._at):
            raise self._wrong(self._why_no_string(start))
        self._at += 1
        return "".join(parts)

    def _why_no_string(self, start: int) -> str:
        if self._at == len(self._raw):
            self._at = start - 1
            return "a string is not closed"
        if self._raw[self._at] == ord("\\"):
            return "a string has an escape that JSON does not know"
        return "a string has a control character, which must be escaped"

    def _scalar(self) -> Any:
        for word, meant in _WORDS.items():
            if self._raw.startswith(word, self._at):
                self._at += len(word)
                return meant
        number = _NUMBER.match(self._raw, self._at)
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
        self._at = self._passed(_SPACE, self._at)

    def _passed(self, pattern: re.Pattern[bytes], start: int) -> int:
        """Where the end of `pattern` is, which can be empty."""
        match = pattern.match(self._raw, start)
        assert match is not None, "it matches nothing too"
        return match.end()

    def _take(self, character: bytes) -> bool:
        """Whether `character` is here; then it is passed, with the white space behind it."""
        if not self._raw.startswith(character, self._at):
            return False
        self._at += 1
        self._skip()
        return True

    def _wrong(self, what: str) -> JsonError:
        line = self._raw.count(b"\n", 0, self._at) + 1
        begin = self._raw.rfind(b"\n", 0, self._at) + 1
        column = len(self._raw[begin : self._at].translate(None, _FOLLOWING)) + 1
        return JsonError(f"{what} (line {line}, column {column})")


def _unescaped(piece: str) -> str:
    if "\\" not in piece:
        return piece
    value: str
    value, _end = scanstring(piece + '"', 0, True)
    return value
