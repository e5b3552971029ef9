"""Windows judge each token once, with enough context."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plinth.algos.windows import windows


@given(st.integers(1, 300), st.integers(2, 70))
def test_every_token_is_judged_once(length: int, context: int) -> None:
    judged: list[int] = []
    for window in windows(length, context):
        assert 0 <= window.start < window.first <= window.end <= length or length == 1
        assert window.end - window.start <= context
        for position in range(window.first, window.end):
            judged.append(position)
            seen = position - window.start
            assert seen >= min(position, context - context // 2)
    assert judged == list(range(1, length))
