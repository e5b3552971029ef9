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
    assert repr(bounded_json.loads(text)) == repr(json.loads(text))


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
        read = repr(bounded_json.loads(text))
    except bounded_json.JsonError:
        read = "no"
    assert read == standard(text)


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
        ("NaN", "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON (line 1, column 2)"),
        ('{"a": True}', "True is no JSON"),
        ("{}x", "something follows"),
        ('"a\nb"', "control character"),
        ("[1,]", "a value is missing (line 1, column 4)"),
        ("{\n1:2}", "a key in double quotes is missing (line 2, column 1)"),
    ],
)
def test_what_is_over_a_bound_or_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(bounded_json.JsonError) as caught:
        bounded_json.loads(text)
    assert words in str(caught.value)


def test_bounds_are_inclusive() -> None:
    assert bounded_json.loads("[" * 64 + "]" * 64)
    assert len(bounded_json.loads("[" + "7," * 262_144 + "7]")) == 262_145
    assert len(bounded_json.loads("[" + "{}," * 32_766 + "{}]")) == 32_767


UNITS = ["{}", "[]", '""', '"€€"', '{"a":1}', "[[]]", "1", "1.5", "true", "-0", '{"a":{"b":[]}}']


@pytest.mark.parametrize("unit", UNITS)
def test_two_megabytes_of_small_things_cost_little_memory(unit: str) -> None:
    text = "[" + ",".join([unit] * (2_000_000 // (len(unit) + 1))) + "]"
    tracemalloc.start()
    try:
        with pytest.raises(bounded_json.JsonError):
            bounded_json.loads(text)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def calls_while(read: Callable[[str], Any], text: str) -> int:
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
    text = "[" + ",".join([unit] * count) + "]"
    calls = calls_while(bounded_json.loads, text)
    assert calls > count // 4_096
    assert calls_while(json.loads, text) < calls // 4, "else this tells nothing"
