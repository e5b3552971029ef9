"""A difference in words has one sign."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.differences import beside


@given(st.floats(-10, 1))
def test_the_words_say_the_figure_back(below: float) -> None:
    told = beside(below)
    assert "-" not in told
    if told == "equal to":
        assert abs(below) < 0.001
        return
    figure, side = told.split()
    back = float(figure.removesuffix("%")) / 100
    assert abs((back if side == "below" else -back) - below) <= 0.0005 + 1e-9
