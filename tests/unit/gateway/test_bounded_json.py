"""JSON is read as the standard library reads it, within bounds, and never long in one piece."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.gateway import bounded_json

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(st.integers()),
    max_leaves=30,
)


@given(VALUES, st.sampled_from([None, 0, 1, "\t"]), st.booleans())
def test_a_value_is_read_as_the_standard_library_reads_it(
    value: Any, indent: int | str | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert repr(bounded_json.loads(text.encode())) == repr(json.loads(text))


def standard(text: str) -> str:
    """repr of what the standard library reads; "no" where it is no JSON as RFC 8259 has it."""

    def no(_name: str) -> None:
        raise ValueError

    try:
        value = json.loads(text, parse_constant=no)
    except (ValueError, RecursionError):
        return "no"
    return "no" if "inf" in (shown := repr(value)) else shown


@given(st.text(alphabet='[]{},:"\\ 0123-.eE+trufalsn\n\t'))
def test_what_is_no_json_there_is_none_here(text: str) -> None:
    try:
        read = repr(bounded_json.loads(text.encode()))
    except bounded_json.JsonError:
        read = "no"
    assert read == standard(text)


ESCAPES = ["\\n", "\\\\", '\\"', "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "\\ude00", "\\x", "\\u12"]
PIECES = st.sampled_from([*ESCAPES, "é", "🎉", "\n", '"', "a" * 1_023, "€" * 700, "a" * 70_000])


@given(st.lists(PIECES, max_size=200))
def test_a_long_string_is_read_in_pieces_as_it_is_in_one(pieces: list[str]) -> None:
    text = '"' + "".join(pieces) + '"'
    try:
        read = repr(bounded_json.loads(text.encode()))
    except bounded_json.JsonError:
        read = "no"
    assert read == standard(text)


BYTES = [b"a" * 65_534, "🎉".encode(), b"\xe2\x82", b"\xac", b"\xff"]


@given(st.lists(st.integers(0, len(BYTES) - 1)))
def test_what_is_no_utf8_is_found_where_it_is(numbers: list[int]) -> None:
    raw = b"".join(BYTES[number] for number in numbers)

    def place(check: Callable[[bytes], Any]) -> tuple[int, str] | None:
        try:
            check(raw)
        except UnicodeDecodeError as error:
            return error.start, error.reason
        return None

    assert place(bounded_json.check_utf8) == place(bytes.decode)


def test_a_string_of_wide_characters_is_held_once() -> None:
    for middle in ("a", "\\n"):
        raw = ('"🎉' + ("a" * 1_000 + middle) * 2_000 + '"').encode()
        tracemalloc.start()
        try:
            text = bounded_json.loads(raw)
            held = sys.getsizeof(text)
            assert held > 7_000_000, "wide"
            del text
            assert tracemalloc.get_traced_memory()[1] < held + 2.5 * len(raw)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested too deeply"),
        ("[" + "{}," * 40_000 + "{}]", "keys and values"),
        ("[" + "1.5," * 40_000 + "1]", "keys and values"),
        ("[" + "1," * 262_145 + "1]", "integers"),
        ("{" + ",".join(f'"{i}":1' for i in range(1_025)) + "}", "keys"),
        ("{" + '"a":1,' * 1_024 + '"a":1}', "keys"),
        ("9" * 101, "digits"),
        ("1e999", "out of range"),
        ("NaN", "a value is missing"),
        ('"a\nb"', "control character"),
        ("[1,]", "a value is missing (line 1, column 4)"),
        ("{\n1:2}", "a key in double quotes is missing (line 2, column 1)"),
    ],
)
def test_what_is_over_a_bound_or_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(bounded_json.JsonError) as caught:
        bounded_json.loads(text.encode())
    assert words in str(caught.value)


def test_bounds_are_inclusive() -> None:
    assert bounded_json.loads(b"[" * 64 + b"]" * 64)
    assert len(bounded_json.loads(b"[" + b"7," * 262_144 + b"7]")) == 262_145
    assert len(bounded_json.loads(b"[" + b"{}," * 32_766 + b"{}]")) == 32_767


UNITS = ["{}", "[]", '""', '"€€"', '{"a":1}', "[[]]", "1", "1.5", "true", "-0", '{"a":{"b":[]}}']


@pytest.mark.parametrize("unit", UNITS)
def test_two_megabytes_of_small_things_cost_little_memory(unit: str) -> None:
    text = "[" + ",".join([unit] * (2_000_000 // (len(unit) + 1))) + "]"
    tracemalloc.start()
    try:
        with pytest.raises(bounded_json.JsonError):
            bounded_json.loads(text.encode())
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def calls_while(read: Callable[[bytes], Any], text: bytes) -> int:
    """Calls that Python code makes while `text` is read: between two of them the interpreter's lock
    can change hands, and in one of them it can't."""
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.disable()  # whose callbacks are calls too
    sys.setprofile(count)
    try:
        read(text)
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


@pytest.mark.parametrize(("unit", "count"), [("1", 262_000), ("12345", 200_000), ("{}", 32_000)])
def test_no_step_reads_more_than_some_thousand_values(unit: str, count: int) -> None:
    text = ("[" + ",".join([unit] * count) + "]").encode()
    calls = calls_while(bounded_json.loads, text)
    assert calls > count // 4_096
    assert calls_while(json.loads, text) < calls // 4, "else this tells nothing"
