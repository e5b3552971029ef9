"""Stop strings against a search of the whole text, which is the independent truth."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from plinth.gateway.generation.stops import StopStrings

TEXT = st.text(alphabet="ab\n€", max_size=60)
STOPS = st.lists(st.text(alphabet="ab\n€", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> str:
    starts = [text.find(stop) for stop in stops if stop in text]
    return text[: min(starts)] if starts else text


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(at % (len(text) + 1) for at in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(TEXT, STOPS, st.lists(st.integers(0, 100), max_size=12))
def test_any_cut_gives_what_a_search_of_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    filter_ = StopStrings(stops)
    out = "".join(filter_.feed(piece) for piece in cut(text, cuts)) + filter_.finish()
    assert out == naive(text, stops)
    assert (filter_.hit is not None) == any(stop in text for stop in stops)


@given(TEXT, STOPS, st.lists(st.integers(0, 100), max_size=12))
def test_nothing_that_was_released_is_ever_taken_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    filter_ = StopStrings(stops)
    truth = naive(text, stops)
    out = ""
    for piece in cut(text, cuts):
        out += filter_.feed(piece)
        assert truth.startswith(out)


def test_text_that_begins_no_stop_string_is_released_at_once() -> None:
    filter_ = StopStrings(["\n\nUser:"])
    assert filter_.feed("Hello") == "Hello"
    assert filter_.feed("\n") == ""
    assert filter_.feed("there") == "\nthere"


def test_a_stop_string_across_many_pieces_ends_the_text() -> None:
    filter_ = StopStrings(["STOP"])
    assert [filter_.feed(piece) for piece in ("go S", "T", "O", "Px")] == ["go ", "", "", ""]
    assert filter_.hit == "STOP"
    assert filter_.feed("more") == "" == filter_.finish()
