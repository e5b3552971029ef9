"""Structs say what the JSON said that they were made of."""

from __future__ import annotations

import json

from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.api.structs import plain_values, struct

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
