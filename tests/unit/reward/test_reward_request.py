"""What a request may say, and how parts are added up."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile_texts import NASTY
from plinth.reward.combine import combine
from plinth.reward.request import MAX_CHECKS, MAX_IDS, Source, parse_request, parse_sources
from plinth.reward.verifiers import Verdict
from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.v1 import rewards_pb2 as pb
from rewards import of_ids, of_messages, of_text, rule


def asked(**changes: object) -> pb.ScoreRewardsRequest:
    fields = {"sources": [rule("a", "lower_case")], "items": [of_text("x")], **changes}
    return pb.ScoreRewardsRequest(**fields)  # type: ignore[arg-type]


SHORT = rule("a", "lower_case")
DEEP: dict[str, object] = reduce(lambda inner, _: {"a": inner}, range(17), {})
MODEL = pb.RewardSource(name="m", model="judge")
WRONG = [
    (asked(sources=[]), "0 sources, must be 1 to 16"),
    (asked(sources=[rule(f"s{i}", "lower_case") for i in range(17)]), "17 sources"),
    (asked(sources=[SHORT, SHORT]), "sources.1.name: 'a' is taken"),
    (asked(sources=[rule("A B", "lower_case")]), "sources.0.name 'A B'"),
    (asked(sources=[pb.RewardSource(name="a")]), "sources.0: give a reward model"),
    (asked(sources=[pb.RewardSource(name="a", model="")]), "sources.0: give a reward model"),
    (asked(sources=[pb.RewardSource(name="a", rule={})]), "sources.0.rule: a rule is an object"),
    (asked(sources=[rule("a", "max_words", n="x" * (65 << 10))]), "sources.0.rule: 665"),
    (asked(sources=[pb.RewardSource(name="a", rule=DEEP)]), "nested deeper than 16 levels"),
    (asked(sources=[pb.RewardSource(name="a", rule={"n": math.nan})]), "rule.n: nan is no number"),
    (asked(sources=[rule("a", "lowercase")]), "'lower_case'"),
    (asked(sources=[rule("a", "max_words", n=1, m=2)]), "sources.0.rule.m: no option"),
    (asked(sources=[pb.RewardSource(name="a", model="m", weight=math.nan)]), "0.weight is nan"),
    (asked(sources=[pb.RewardSource(name="a", model="m", scale=math.inf)]), "0.scale is inf"),
    (
        asked(sources=[pb.RewardSource(name="a", model="m", clip_low=2, clip_high=1)]),
        "clip_low 2 is above clip_high 1",
    ),
    (asked(items=[]), "0 items, must be 1 to 1024"),
    (asked(items=[of_text("x")] * 1025), "1025 items"),
    (asked(items=[of_text("x"), pb.RewardItem(prompt_text="x")]), "items.1: no response"),
    (asked(sources=[MODEL]), "items.0: no prompt, and source 'm' is a model"),
    (asked(items=[of_ids([1], [2])]), "items.0.response_tokens: rules read text"),
    (asked(items=[of_text("x" * (300 << 10))]), "items.0.response_text: 307200 characters"),
    (
        asked(items=[of_ids([1] * (MAX_IDS + 1), [2])], tokenizer="t"),
        "items.0.prompt_tokens: 131073 ids",
    ),
    (asked(items=[of_messages("x")]), "items.0.prompt_messages: a conversation needs"),
    (asked(items=[of_messages("x", ("robot", "hi"))]), "messages.0.role: 'robot'"),
    (asked(items=[of_text("x", checks=[{"n": 1}])]), "items.0.checks.0: a rule is an object"),
    (asked(items=[of_text("x", checks=[{"kind": "x"}])]), "items.0.checks.0: kind 'x'"),
    (asked(items=[of_text("x", checks=[{"kind": "checks"}])]), "can't hold 'checks'"),
    (asked(items=[of_text("x", checks=[{}] * (MAX_CHECKS + 1))]), "items.0.checks: 33 rules"),
    (asked(items=[of_text("x", tests=["pass"] * 65)]), "items.0.tests: 65 tests"),
    (asked(items=[of_text("x", tests=["#" * 20_000])]), "items.0.tests.0: 20000"),
    (asked(items=[of_text("x", reference="#" * 70_000)]), "items.0.reference: 70000"),
]


@pytest.mark.parametrize(("request_", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_wrong_is_named(request_: pb.ScoreRewardsRequest, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_request(request_)
    assert words in caught.value.message
    assert caught.value.field


def test_defaults() -> None:
    (source,) = parse_sources([MODEL])
    assert (source.weight, source.scale, source.shift) == (1, 1, 0)
    assert source.value(-1e300) == -1e300


NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_scale_shift_and_clip(raw: float, scale: float, shift: float, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    given_ = pb.RewardSource(
        name="m", model="m", scale=scale, shift=shift, clip_low=low, clip_high=high
    )
    (source,) = parse_sources([given_])
    value = source.value(raw)
    assert low <= value <= high
    if low < scale * raw + shift < high:
        assert value == scale * raw + shift


@given(st.lists(st.tuples(NUMBERS, st.lists(NUMBERS, min_size=3, max_size=3)), min_size=1))
def test_totals_are_exact_sums_in_any_order(columns: list[tuple[float, list[float]]]) -> None:
    sources = [source(f"s{i}", weight) for i, (weight, _) in enumerate(columns)]
    verdicts = [[Verdict(value) for value in values] for _, values in columns]
    rewards = combine(sources, verdicts)
    for item, reward in enumerate(rewards):
        assert reward.total == math.fsum(w * values[item] for w, values in columns)
        assert [part.value for part in reward.parts] == [values[item] for _, values in columns]
        assert [part.weight for part in reward.parts] == [w for w, _ in columns]
    backwards = combine(sources[::-1], verdicts[::-1])
    assert [reward.total for reward in backwards] == [reward.total for reward in rewards]


def source(name: str, weight: float = 1.0) -> Source:
    (made,) = parse_sources([pb.RewardSource(name=name, weight=weight, model="m")])
    return made


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_error_that_names_source_and_item(bad: float) -> None:
    verdicts = [[Verdict(1.0)] * 3, [Verdict(0.0), Verdict(0.0), Verdict(bad)]]
    with pytest.raises(DataLoss) as caught:
        combine([source("good"), source("bad", 0.0)], verdicts)
    assert "source 'bad'" in caught.value.message
    assert "item 2" in caught.value.message
    assert caught.value.metadata == {"source": "bad", "item": "2"}
    assert caught.value.reason == "REWARD_NOT_FINITE"


def test_a_sum_beyond_a_double_is_an_error() -> None:
    huge = source("a", 1e308), source("b", 1e308)
    with pytest.raises(DataLoss, match="the total"):
        combine(huge, [[Verdict(1.0)], [Verdict(1.0)]])
    with pytest.raises(DataLoss, match="the total"):
        combine([source("a", 1e308)], [[Verdict(1e308)]])


def test_a_part_without_a_value_leaves_no_total() -> None:
    rewards = combine([source("a"), source("b", 0.0)], [[Verdict(1.0)], [Verdict(None, "why")]])
    assert not rewards[0].HasField("total")
    assert not rewards[0].parts[1].HasField("value")
    assert rewards[0].parts[1].reason == "why"


def test_the_stage_imports_without_torch() -> None:
    code = "import sys, plinth.reward.service; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", NASTY)
def test_a_reason_that_an_answers_program_wrote_can_be_sent(text) -> None:
    """Code under test raises what it likes, and its words are the verdict's reason."""
    (reward,) = combine([source("code")], [[Verdict(0.0, text)]])
    back = pb.Reward.FromString(reward.SerializeToString())
    assert back.parts[0].reason == reward.parts[0].reason
    assert len(back.parts[0].reason) <= 1000
