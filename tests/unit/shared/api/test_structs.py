"""Structs say what the JSON said that they were made of."""

from __future__ import annotations

import json
import math
from functools import reduce
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.api.structs import MAX_DEPTH, mapping_of, plain_values, struct, struct_of
from plinth.shared.errors import InvalidArgument

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer())
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), VALUES))
def test_there_and_back(given_: dict[str, object]) -> None:
    sent = Struct.FromString(struct(given_).SerializeToString())
    assert json.dumps(plain_values(sent), sort_keys=True) == json.dumps(given_, sort_keys=True)


def test_a_whole_number_is_an_int() -> None:
    made = plain_values(struct({"n": 30.0, "list": [1.0, 1.5]}))
    assert made == {"n": 30, "list": [1, 1.5]}
    assert [type(one) for one in (made["n"], *made["list"])] == [int, int, float]


def nested(levels: int, wrap: Any = lambda inner: {"a": inner}) -> Any:
    return reduce(lambda inner, _: wrap(inner), range(levels - 1), {})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"n": 2**53 + 1}, "rule.n: 9007199254740993 can't be said exactly"),
        ({"n": 10**400}, "can't be said exactly"),
        ({"a": {"n": math.nan}}, "rule.a.n: nan"),
        ({"n": -math.inf}, "rule.n: -inf"),
        ({"a": ["\ud800"]}, "rule.a.0: holds a lone surrogate"),
        ({"\udfff": 1}, "rule: holds a lone surrogate"),
        ({"a": b"x"}, "rule.a: bytes is nothing of JSON"),
        (nested(MAX_DEPTH + 1), "nested deeper than 16 levels"),
        ({"x": nested(MAX_DEPTH, lambda inner: [inner])}, "nested deeper than 16 levels"),
    ],
)
def test_what_it_can_not_hold_is_refused(value: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        struct_of(value, "rule")
    assert words in caught.value.message
    assert caught.value.field.startswith("rule")


def test_a_message_from_elsewhere_is_checked_the_same() -> None:
    deep = reduce(
        lambda inner, _: Struct(fields={"a": {"struct_value": inner}}), range(20), Struct()
    )
    with pytest.raises(InvalidArgument, match="nested deeper"):
        mapping_of(deep, "rule")
    with pytest.raises(InvalidArgument, match=r"rule\.n: inf"):
        mapping_of(Struct(fields={"n": {"number_value": math.inf}}), "rule")
    assert mapping_of(struct_of(nested(MAX_DEPTH), "rule"), "rule") == nested(MAX_DEPTH)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), SCALARS))
def test_what_a_client_says_comes_through_as_it_is(said: dict[str, object]) -> None:
    assert mapping_of(struct_of(said, "rule"), "rule") == said
