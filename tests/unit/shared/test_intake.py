"""What a step took and what it left out, told and checked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plinth
from plinth.shared.corpus_folder import CorpusFolder
from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import REASONS, Intake, check_intake, intakes_of, reason_of


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


def test_each_word_for_what_is_left_out_has_a_name_for_who_counts_it(tmp_path: Path) -> None:
    """By the source of all that leaves something out; and no name is of what nobody says."""
    sources = [
        path.read_text()
        for path in Path(plinth.__file__).parent.rglob("*.py")
        if path.name != "intake.py"
    ]
    names = set()
    for source in sources:
        for node in ast.walk(ast.parse(source if ".leave_out(" in source else "")):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".leave_out"):
                why = node.args[0]
                if isinstance(why, ast.JoinedStr):
                    why = why.values[0]
                if isinstance(why, ast.Constant):
                    names.add(reason_of(why.value))
    for number in range(10):
        (tmp_path / f"a.x{number}").touch()
    (tmp_path / "away").symlink_to(tmp_path / "none")
    names |= {reason_of(why) for why in CorpusFolder(tmp_path).others}
    assert names == {*REASONS} - {"other"}
    assert reason_of("eaten by the dog") == "other"
    for begins in REASONS.values():
        assert all(any(begin in source for source in sources) for begin in begins)
