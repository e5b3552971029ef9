"""Patterns in their own process: what matches, and what may not take the replica with it."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator

import pytest

from patience import PATIENCE_S
from plinth.reward.verifiers import Answer, parse_rule
from plinth.shared.errors import InvalidArgument
from plinth.shared.matching import Matcher


@pytest.fixture
async def matcher() -> AsyncIterator[Matcher]:
    made = Matcher(seconds=0.5)
    yield made
    await made.close()


class Tools:
    def __init__(self, matcher: Matcher) -> None:
        self.match = matcher.match


async def test_it_says_what_re_says(matcher: Matcher) -> None:
    for pattern, flags, text in (
        (r"^\d+$", 0, "12"),
        (r"^\d+$", 0, "a\n12"),
        (r"^\d+$", re.MULTILINE, "a\n12"),
        ("ABC", re.IGNORECASE, "xabc"),
        ("a.c", re.DOTALL, "a\nc"),
        ("\u00e9", 0, "caf\u00e9 \ud800"),
    ):
        for full in (False, True):
            look = re.compile(pattern, flags)
            wanted = (look.fullmatch(text) if full else look.search(text)) is not None
            assert await matcher.match(pattern, int(flags), full, text) is wanted


async def test_a_pattern_that_blows_up_is_ended_and_the_next_one_matches(matcher: Matcher) -> None:
    began = time.monotonic()
    blown = await matcher.match(r"(a+)+$", 0, False, "a" * 40 + "!")
    assert isinstance(blown, str)
    assert "more than 0.5 s of processor time" in blown
    assert time.monotonic() - began < PATIENCE_S
    assert await matcher.match("b", 0, False, "abc") is True


async def test_what_processor_time_does_not_end_the_owner_does() -> None:
    matcher = Matcher(seconds=100, wall_s=1)
    try:
        blown = await matcher.match(r"(a+)+$", 0, False, "a" * 40 + "!")
        assert isinstance(blown, str)
        assert "more than 1 s and was ended" in blown
    finally:
        await matcher.close()


async def test_the_last_group_that_holds_anything(matcher: Matcher) -> None:
    texts = ["it is 3, no, 4 !", "none", "", "x 5", "\u0663 and \U0001f600"]
    for pattern, found in (
        (r"(\d+)", ["4", None, None, "5", "\u0663"]),
        (r"(\d*)", ["4", None, None, "5", "\u0663"]),  # the last match of all is empty
        (r"is( \d)|(no)", ["3", None, None, None, None]),
        (r"(?s)(.*)", ["it is 3, no, 4 !", "none", None, "x 5", "\u0663 and \U0001f600"]),
        (r"(?P<a>x) (\d)", [None, None, None, "x", None]),
    ):
        assert await matcher.last(pattern, texts) == found, pattern
    assert await matcher.last("(a)", []) == []


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"\d+", "no group"),
        ("(?:a)", "no group"),
        ("(", "unterminated"),
        ("(a{99999999999})", "OverflowError"),
        (r"((a+)+)$", "more than 0.5 s of processor time"),
        # Its compilation alone takes that long: each class is spelt out for both cases.
        ("(?i)(" + "[A-\uffff]" * 900 + ")", "more than 0.5 s of processor time"),
    ],
)
async def test_a_pattern_that_finds_no_answers(matcher: Matcher, pattern: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await matcher.last(pattern, ["b", "a" * 40 + "!"])
    assert await matcher.last("(b)", ["abc"]) == ["b"]


async def test_the_rule(matcher: Matcher) -> None:
    for raw, text, value in (
        ({"pattern": r"yes|no"}, "so yes", 1),
        ({"pattern": r"yes|no", "full": True}, "so yes", 0),
        ({"pattern": r"YES", "ignore_case": True}, "so yes", 1),
        ({"pattern": r"^b", "multi_line": True}, "a\nb", 1),
        ({"pattern": r"a.b", "dot_all": True}, "a\nb", 1),
        ({"pattern": r"yes", "absent": True}, "so yes", 0),
        ({"pattern": r"yes", "absent": True}, "so no", 1),
        # Neither way does it pay to make the pattern blow up.
        ({"pattern": r"(a+)+$"}, "a" * 40 + "!", 0),
        ({"pattern": r"(a+)+$", "absent": True}, "a" * 40 + "!", 0),
    ):
        rule = parse_rule({"kind": "regex", **raw}, "rule")
        assert (await rule.judge(Answer(text), Tools(matcher))).value == value  # type: ignore[arg-type]
