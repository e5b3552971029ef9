"""What a step took and what it left out, told and checked."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake, check_intake, intakes_of


def test_a_line_says_how_much_and_why() -> None:
    intake = Intake("chats", 20)
    assert intake.line() == "20 chats"
    intake.note("cut at 64 tokens", 3)
    intake.leave_out("longer than 64 tokens", 160)
    intake.leave_out("repeated word for word")
    intake.leave_out("repeated word for word")
    assert intake.line() == (
        "20 of 182 chats; left out: 160 longer than 64 tokens, 2 repeated word for word; "
        "3 cut at 64 tokens"
    )
    assert intakes_of({"intake": [intake.to_json()]}) == [intake]
    assert intakes_of({}) == []


def test_one_is_told_as_one() -> None:
    assert Intake("files", 1).line() == "1 file"
    assert Intake("files", 0, {"of kind .png": 1}).line() == (
        "0 of 1 file; left out: 1 of kind .png"
    )
    assert Intake("files", 1, {"of kind .png": 1}).line().startswith("1 of 2 files")


@given(taken=st.integers(1, 500), missing=st.integers(0, 500))
def test_a_tenth_warns_and_past_a_half_it_is_asked_for(taken: int, missing: int) -> None:
    intake = Intake("pairs", taken, {"too long": missing} if missing else {})
    share = missing / (taken + missing)
    assert intake.warns == (share > 0.1)
    if share <= 0.5:
        check_intake([intake], None, "Shorten them")
        return
    with pytest.raises(InvalidArgument) as caught:
        check_intake([intake], None, "Shorten them")
    assert intake.line() in caught.value.message
    # The setting that the message names is enough, and no more than that.
    (accepting,) = re.findall(r"max_left_out: (\d(?:\.\d+)?)", caught.value.message)
    check_intake([intake], float(accepting), "Shorten them")
    assert float(accepting) - share <= 0.01
