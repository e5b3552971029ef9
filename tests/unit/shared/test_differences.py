"""A difference in words has one sign."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.differences import beside, digits_apart


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


@given(st.floats(0, 2), st.floats(-1e-3, 1e-3), st.integers(0, 4))
def test_a_figure_that_misses_its_bar_does_not_look_like_it(bar, miss, least) -> None:
    """5.97 % against 6 % is not "6.0% … 6.0% is required"."""
    digits = digits_apart(bar + miss, bar, least)
    assert digits >= least
    if abs(miss) > 1e-9:
        assert f"{bar + miss:.{digits}f}" != f"{bar:.{digits}f}"
    else:
        assert digits_apart(bar, bar, least) == least
