"""JSON objects as Structs."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.api.structs import MAX_DEPTH, mapping_of, struct_of
from plinth.shared.errors import InvalidArgument

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def nested(levels: int, wrap: Any = lambda inner: {"a": inner}) -> Any:
    return reduce(lambda inner, _: wrap(inner), range(levels - 1), {})


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_goes_in_comes_out_also_over_the_wire(value: dict[str, Any]) -> None:
    try:
        raw = struct_of(value, "rule").SerializeToString()
    except InvalidArgument as refused:  # the strategy may nest deeper than is taken
        assert "nested deeper" in refused.message
        return
    assert mapping_of(Struct.FromString(raw), "rule") == value


def test_integers_come_back_as_integers() -> None:
    back = mapping_of(struct_of({"n": 30, "share": 0.5, "on": True}, "rule"), "rule")
    assert [type(back[name]) for name in ("n", "share", "on")] == [int, float, bool]


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
