"""Every verifiable reward against cases by hand, and properties that hold for any answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.reward.sandbox.runner import Limits, SandboxOutcome
from plinth.reward.verifiers import Answer, Verdict, kinds, parse_rule
from plinth.reward.verifiers.answers import boxed
from plinth.reward.verifiers.code import code_of
from plinth.reward.verifiers.contract import Rule, rule
from plinth.shared.answer_form import distinct_trigrams
from plinth.shared.errors import InvalidArgument


class NoTools:
    """For rules that need none."""

    async def match(self, pattern: str, flags: int, full: bool, text: str) -> bool | str:
        raise AssertionError("no pattern was to be matched")

    async def run_tests(
        self, code: str, tests: Sequence[str], limits: Limits, *, setup: str, candidate: str
    ) -> SandboxOutcome:
        raise AssertionError("no code was to be run")


def verdict(raw: dict[str, Any], answer: Answer | str) -> Verdict:
    """Rules without tools never wait, so that their coroutine ends at its first step."""
    judged = parse_rule(raw, "rule").judge(
        Answer(answer) if isinstance(answer, str) else answer, NoTools()
    )
    try:
        judged.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waited")


CASES: list[tuple[dict[str, Any], str, float]] = [
    ({"kind": "max_words", "n": 3}, "one two  three\n", 1),
    ({"kind": "max_words", "n": 3}, "one two three four", 0),
    ({"kind": "max_words", "n": 3}, "  \n", 0),
    ({"kind": "max_words", "n": 3, "allow_empty": True}, "", 1),
    ({"kind": "min_words", "n": 2}, "one", 0),
    ({"kind": "min_words", "n": 2}, "one two", 1),
    ({"kind": "length", "unit": "chars", "at_least": 2, "at_most": 4}, "abcd", 1),
    ({"kind": "length", "unit": "chars", "at_least": 2, "at_most": 4}, "abcde", 0),
    ({"kind": "length", "target": 10, "slack": 5}, "w " * 10, 1),
    ({"kind": "length", "target": 10, "slack": 5}, "w " * 8, 0.6),
    ({"kind": "length", "target": 10, "slack": 5}, "w " * 16, 0),
    ({"kind": "lower_case"}, "all small, ß and 1", 1),
    ({"kind": "lower_case"}, "not All", 0),
    ({"kind": "lower_case"}, "", 0),
    ({"kind": "lower_case"}, "the titlecase \u01c5", 0),
    ({"kind": "no_commas"}, "a; b", 1),
    ({"kind": "no_commas"}, "a, b", 0),
    ({"kind": "no_commas"}, "a\uff0c b", 0),
    ({"kind": "bullets", "n": 2}, "Here:\n- one\n* two\n", 1),
    ({"kind": "bullets", "n": 2}, "- one\n-two\n", 0),
    ({"kind": "bullets", "at_least": 2}, "- one\n  • two\n+ three", 1),
    ({"kind": "bullets", "at_least": 1, "at_most": 2}, "- one\n- two\n- three", 0),
    ({"kind": "starts_with", "text": "Sure:"}, "\n Sure: yes", 1),
    ({"kind": "starts_with", "text": "Sure:"}, "sure: yes", 0),
    ({"kind": "starts_with", "text": "Sure:", "ignore_case": True}, "SURE: yes", 1),
    ({"kind": "ends_with", "text": "bye."}, "so, bye. \n", 1),
    ({"kind": "ends_with", "text": "bye."}, "bye", 0),
    ({"kind": "json"}, ' {"a": [1, 2]} ', 1),
    ({"kind": "json"}, "3", 1),
    ({"kind": "json"}, "{'a': 1}", 0),
    ({"kind": "json"}, '{"a": 1} and more', 0),
    ({"kind": "json"}, "NaN", 0),
    ({"kind": "json"}, '```json\n{"a": 1}\n```', 1),
    ({"kind": "json", "fenced": False}, '```json\n{"a": 1}\n```', 0),
    ({"kind": "json"}, "[" * 100_000, 0),
    ({"kind": "json", "type": "object"}, "[1]", 0),
    ({"kind": "json", "type": "array"}, "[1]", 1),
    ({"kind": "json", "required": ["name", "age"]}, '{"name": 1, "age": 2, "x": 3}', 1),
    ({"kind": "json", "required": ["name", "age"]}, '{"name": 1}', 0),
    ({"kind": "json", "required": ["name"]}, '["name"]', 0),
    ({"kind": "contains", "phrases": ["red", "Blue"]}, "blue, then RED", 1),
    ({"kind": "contains", "phrases": ["red", "blue"]}, "only red", 0),
    ({"kind": "contains", "phrases": ["red", "blue"], "which": "any"}, "only red", 1),
    ({"kind": "contains", "phrases": ["red"], "which": "none"}, "only red", 0),
    ({"kind": "contains", "phrases": ["Red"], "ignore_case": False}, "red", 0),
    ({"kind": "distinct_trigrams"}, "a b c d", 1),
    ({"kind": "distinct_trigrams"}, "a b a b a b", 0.5),  # aba bab aba bab
    ({"kind": "distinct_trigrams", "at_least": 0.6}, "a b a b a b", 0),
]


@pytest.mark.parametrize(("raw", "text", "value"), CASES)
def test_rules_by_hand(raw: dict[str, Any], text: str, value: float) -> None:
    got = verdict(raw, text)
    assert got.value == pytest.approx(value)
    if raw["kind"] != "distinct_trigrams":
        assert (got.reason == "") == (value == 1)


ANSWERS: list[tuple[dict[str, Any], str, str, float]] = [
    ({"kind": "exact_answer"}, " Paris. ", "paris", 1),
    ({"kind": "exact_answer", "ignore_case": False}, "paris", "Paris", 0),
    ({"kind": "exact_answer"}, "1,000.0", "1000", 1),
    ({"kind": "exact_answer", "numbers": False}, "1,000.0", "1000", 0),
    # GSM8K: a worked reference, an answer whose last number counts
    (
        {"kind": "exact_answer", "extract": "last_number"},
        "She sold 48/2 = 24 in May, 72 in all.",
        "48+24 = <<48+24=72>>72\n#### 72",
        1,
    ),
    ({"kind": "exact_answer", "extract": "last_number"}, "It is $1,234.50.", "1234.5", 1),
    ({"kind": "exact_answer", "extract": "last_number"}, "It is 73", "#### 72", 0),
    ({"kind": "exact_answer", "extract": "last_number"}, "No idea", "#### 72", 0),
    ({"kind": "exact_answer", "extract": "after"}, "So\n#### 72\n", "#### 72", 1),
    ({"kind": "exact_answer", "extract": "after"}, "72", "#### 72", 0),
    # MATH
    (
        {"kind": "exact_answer", "extract": "boxed"},
        r"so \boxed{1} or rather \boxed{\dfrac{1}{2}}.",
        r"\boxed{\frac{1}{2}}",
        1,
    ),
    ({"kind": "exact_answer", "extract": "boxed"}, r"\boxed{\text{east}}", r"\boxed{East}", 1),
    ({"kind": "exact_answer", "extract": "boxed"}, r"\boxed{90^\circ}", "90", 1),
    ({"kind": "exact_answer", "extract": "boxed"}, r"it is 90", "90", 0),
    ({"kind": "exact_answer", "extract": "last_line"}, "thinking\n\nB\n", "b", 1),
    ({"kind": "number", "absolute": 0.01}, "about 3.14", "3.14159", 1),
    ({"kind": "number", "absolute": 0.001}, "about 3.14", "3.14159", 0),
    ({"kind": "number", "relative": 0.1}, "-95", "-100", 1),
    ({"kind": "number", "relative": 0.1}, "95", "-100", 0),
    ({"kind": "number", "absolute": 1}, "nothing", "1", 0),
]


@pytest.mark.parametrize(("raw", "text", "reference", "value"), ANSWERS)
def test_answers_by_hand(raw: dict[str, Any], text: str, reference: str, value: float) -> None:
    got = verdict(raw, Answer(text, reference=reference))
    assert got.value == value
    assert (got.reason == "") == (value == 1)


def test_what_cannot_be_scored_has_no_value() -> None:
    for raw, answer, words in (
        ({"kind": "exact_answer"}, Answer("x"), "no reference"),
        ({"kind": "number", "absolute": 1}, Answer("1", reference="one"), "no number"),
        ({"kind": "length", "unit": "tokens", "at_most": 3}, Answer("x"), "tokens"),
        ({"kind": "code_tests"}, Answer("x"), "no tests"),
    ):
        got = verdict(raw, answer)
        assert got.value is None
        assert words in got.reason
    assert verdict({"kind": "length", "unit": "tokens", "at_most": 3}, Answer("x", 4)).value == 0


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"kind": "max_word", "n": 3}, "'max_words'"),
        ({"kind": "max_words"}, "rule.n: Field required"),
        ({"kind": "max_words", "n": -1}, "rule.n"),
        ({"kind": "max_words", "n": 3, "m": 1}, "no option of 'max_words'; it has allow_empty, n"),
        ({"kind": "bullets"}, "give n, or"),
        ({"kind": "bullets", "n": 1, "at_most": 2}, "give n, or"),
        ({"kind": "length"}, "give at_least"),
        ({"kind": "length", "at_least": 3, "at_most": 2}, "nothing could pass"),
        ({"kind": "length", "target": 3, "slack": float("nan")}, "slack"),
        ({"kind": "regex", "pattern": "("}, "no pattern"),
        ({"kind": "regex", "pattern": "a" * 3000}, "at most 2000"),
        ({"kind": "json", "type": "array", "required": ["a"]}, "object"),
        ({"kind": "number"}, "give absolute or relative"),
        ({"kind": "code_tests", "entry_point": "a b"}, "entry_point"),
        ({"kind": "code_tests", "seconds": 1e9}, "seconds"),
        ({"kind": "contains", "phrases": [""]}, "phrase"),
        ({"n": 3}, "'kind'"),
        ("max_words", "'kind'"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(raw: Any, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_rule(raw, "rule")
    assert words in caught.value.message
    assert caught.value.message.startswith("rule")


def test_two_rules_of_one_kind_are_a_mistake() -> None:
    class Mine(Rule):
        KIND = "max_words"

    with pytest.raises(ValueError, match="taken"):
        rule(Mine)
    assert "max_words" in kinds()


def test_boxes_with_braces_that_match() -> None:
    assert boxed(r"\boxed{a{b}{c{d}}}e") == "a{b}{c{d}}"
    assert boxed(r"\fbox{7}") == "7"
    assert boxed(r"\boxed {7}") == "7"
    assert boxed(r"\boxed{7") is None
    assert boxed(r"\boxed 7 and {8}") is None
    assert boxed("7") is None


def test_code_is_what_is_fenced() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("So:\n```python\nx = 1\n```\nand\n```\ny = 2\n```") == "x = 1\n\ny = 2\n"


ANY = [
    {"kind": "max_words", "n": 5},
    {"kind": "min_words", "n": 5},
    {"kind": "length", "target": 7},
    {"kind": "lower_case"},
    {"kind": "no_commas"},
    {"kind": "bullets", "n": 1},
    {"kind": "starts_with", "text": "a"},
    {"kind": "ends_with", "text": "a"},
    {"kind": "json", "required": ["a"]},
    {"kind": "contains", "phrases": ["a"]},
    {"kind": "distinct_trigrams"},
    {"kind": "exact_answer", "extract": "boxed"},
    {"kind": "exact_answer", "extract": "last_number"},
    {"kind": "number", "absolute": 1},
]


@given(st.text(max_size=200), st.text(max_size=40), st.sampled_from(ANY))
def test_any_text_gets_a_value_between_0_and_1(
    text: str, reference: str, raw: dict[str, Any]
) -> None:
    got = verdict(raw, Answer(text, reference=reference))
    assert got.value is None or 0 <= got.value <= 1
    assert verdict(raw, Answer(text, reference=reference)) == got


@given(st.text(max_size=100))
def test_rules_against_their_meaning(text: str) -> None:
    said = bool(text.strip())
    assert verdict({"kind": "no_commas"}, text).value == float(
        said and not set(text) & set(",\uff0c\u060c\u3001")
    )
    count = len(text.split())
    assert verdict({"kind": "max_words", "n": 4}, text).value == float(0 < count <= 4)
    lowered = verdict({"kind": "lower_case"}, text.lower())
    assert not said or any(c.isupper() for c in text.lower()) or lowered.value == 1
    # What equals itself is right, whatever it is.
    assert not said or verdict({"kind": "exact_answer"}, Answer(text, reference=text)).value == 1


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_what_json_writes_is_json(value: Any) -> None:
    assert verdict({"kind": "json"}, json.dumps(value)).value == 1


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_distinct_trigrams_by_counting(words: list[str]) -> None:
    seen: list[tuple[str, ...]] = []
    total = 0
    for i in range(len(words) - 2):
        total += 1
        if (trigram := tuple(words[i : i + 3])) not in seen:
            seen.append(trigram)
    assert distinct_trigrams([" ".join(words)]) == (len(seen) / total if total else 1.0)


async def test_checks_hold_together_or_in_part() -> None:
    three = (
        parse_rule({"kind": "max_words", "n": 3}, "c"),
        parse_rule({"kind": "lower_case"}, "c"),
        parse_rule({"kind": "no_commas"}, "c"),
    )
    for text, share in (("all is well", 1), ("All, is so not well", 0), ("it is, so", 2 / 3)):
        answer = Answer(text, checks=three)
        whole = await parse_rule({"kind": "checks"}, "c").judge(answer, NoTools())
        part = await parse_rule({"kind": "checks", "mode": "share"}, "c").judge(answer, NoTools())
        assert whole.value == float(share == 1)
        assert part.value == pytest.approx(share)
        assert ("no_commas" in part.reason) == ("," in text)
    unscored = (parse_rule({"kind": "exact_answer"}, "c"),)
    got = await parse_rule({"kind": "checks"}, "c").judge(Answer("x", checks=unscored), NoTools())
    assert got.value is None
    none = await parse_rule({"kind": "checks"}, "c").judge(Answer("x"), NoTools())
    assert none.value is None
