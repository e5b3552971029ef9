"""What is told of an answer's text, and that the reward stage's rules and the coordinator's checks
tell the same of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plinth.coordinator.answers import AnswerRule as Check
from plinth.coordinator.answers import judge
from plinth.reward.verifiers import Answer, parse_rule
from plinth.shared.answer_form import distinct_trigrams, first_capital, json_value, word_count

# The same question to both: (the coordinator's check, the reward stage's rule).
PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"contains": ["ab", "ß"]}, {"kind": "contains", "phrases": ["ab", "ß"]}),
    (
        {"contains_any": ["ss", "ı"]},
        {"kind": "contains", "phrases": ["ss", "ı"], "which": "any"},
    ),
    ({"excludes": ["A", "ς"]}, {"kind": "contains", "phrases": ["A", "ς"], "which": "none"}),
    ({"lower_case": True}, {"kind": "lower_case"}),
    (
        {"json_object": True},
        {"kind": "json", "type": "object", "fenced": False},
    ),
    ({"min_words": 2}, {"kind": "min_words", "n": 2}),
    ({"max_words": 2}, {"kind": "max_words", "n": 2}),
]
ANSWERS = [
    *("a b", "AB straße", "STRASSE ab", "ǅ", "İstanbul", "ΣΑΣ", "{}", '{"a": NaN}', "[1]"),
    *('{"a": 1}', "one\u2003two three", "{" * 5000, "Ab ẞ", "ªº", "Ⅷ"),
]


@pytest.mark.parametrize(("check", "rule"), PAIRS)
async def test_both_tell_the_same(check: dict[str, Any], rule: dict[str, Any]) -> None:
    made, other = Check.model_validate(check), parse_rule(rule, "r")
    judged = await judge([("p", answer, made) for answer in ANSWERS])
    for answer, one in zip(ANSWERS, judged, strict=True):
        verdict = await other.judge(Answer(answer), None)  # type: ignore[arg-type]
        assert (not one.why) is (verdict.value == 1.0), (answer, one.why, verdict.reason)


@settings(max_examples=50)
@given(st.lists(st.text('aAbB ßẞςΣ{}[]:1"N', min_size=1, max_size=12), min_size=1, max_size=5))
async def test_both_tell_the_same_of_any_text(answers: list[str]) -> None:
    answers = [answer for answer in answers if answer.strip()]  # of none only the rules tell
    for check, rule in PAIRS:
        judged = await judge([("p", answer, Check.model_validate(check)) for answer in answers])
        for answer, one in zip(answers, judged, strict=True):
            verdict = await parse_rule(rule, "r").judge(Answer(answer), None)  # type: ignore[arg-type]
            assert (not one.why) is (verdict.value == 1.0), (answer, check)


def test_distinct_trigrams_are_counted_within_answers_and_without_case() -> None:
    assert distinct_trigrams(["a b c d", "A b c"]) == pytest.approx(2 / 3)
    assert distinct_trigrams(["a b", ""]) == 1.0
    assert distinct_trigrams(["x x x x x"]) == pytest.approx(1 / 3)
    assert distinct_trigrams(["The end is near. the end is near."]) == pytest.approx(4 / 6)
    assert distinct_trigrams([]) == 1.0


def test_words_capitals_and_json() -> None:
    assert word_count(" one\ntwo\u2003three ") == 3
    assert first_capital("a bC") == "C"
    assert first_capital("a b") == ""
    assert json_value(" [1] ") == [1]
    assert json_value("```json\n{}\n```", fenced=True) == {}
    for wrong in ("", "{}{}", "NaN", "```\n{}\n```", "[" * 100_000):
        with pytest.raises(ValueError):
            json_value(wrong)
