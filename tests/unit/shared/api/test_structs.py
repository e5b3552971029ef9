"""Plain values in google.protobuf.Struct, there and back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.api.structs import plain_values, struct

_scalars = (
    st.none()
    | st.booleans()
    | st.text()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(st.dictionaries(st.text(), _values))
def test_there_and_back(values: dict[str, Any]) -> None:
    assert plain_values(struct(values)) == values


def test_whole_numbers_are_integers() -> None:
    back = plain_values(struct({"layers": 2, "rate": 2.5, "deep": [{"n": 1.0}]}))
    assert back == {"layers": 2, "rate": 2.5, "deep": [{"n": 1}]}
    assert isinstance(back["layers"], int) and isinstance(back["rate"], float)
    assert plain_values(struct(None)) == {}
