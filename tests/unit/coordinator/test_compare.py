"""Which model goes on after a comparison, and what is said of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from plinth.algos.paired import LEVEL, PairedCounts, pairs_needed
from plinth.coordinator.pipeline import parse
from plinth.coordinator.steps.compare import (
    CompareRequire,
    CompareSpec,
    choose,
    choose_language,
)
from plinth.shared.errors import FailedPrecondition, InvalidArgument

BASE = {"model": "chat@1", "wins": 0, "losses": 0, "ties": 100}


def model(name: str, wins: int, losses: int, ties: int = 0) -> dict[str, Any]:
    return {"model": name, "wins": wins, "losses": losses, "ties": ties}


def test_a_rival_wins_only_beyond_chance() -> None:
    """61 of 100 is (p = 0.018); 59 is not (p = 0.044)."""
    sure, unsure = model("dpo@1", 61, 39), model("ppo@1", 59, 41)
    winner, why = choose({"baseline": BASE, "candidate": sure}, CompareRequire())
    assert winner == "candidate"
    assert why == (
        "dpo@1 wins 61.0% of 100 prompts against chat@1 (61 won, 39 lost, 0 tied; p = 0.018): "
        "beyond chance"
    )
    winner, why = choose({"baseline": BASE, "candidate": unsure}, CompareRequire())
    assert winner == "baseline"
    assert why.startswith("chat@1 stays, no rival is better beyond chance: ppo@1 wins 59.0% of 100")
    size = pairs_needed(0.59)
    assert f"if that is the truth, some {size:,} prompts would show it" in why


def test_rivals_share_the_chance_of_being_wrong() -> None:
    """What one rival shows by itself, three don't; what the best shows frees the others (Holm)."""
    one, none = model("dpo@1", 61, 39), model("sft@1", 50, 50)
    three = {"baseline": BASE, "candidate": one, "candidate_2": none, "candidate_3": none}
    winner, why = choose(three, CompareRequire())
    assert winner == "baseline"
    assert "(2.5% one-sided, over 3 rivals)" in why
    best = model("ppo@1", 70, 30)
    assert choose({**three, "candidate_3": best}, CompareRequire())[0] == "candidate_3"
    # A higher rate that is not beyond chance does not hide a lower one that is.
    few = model("few@1", 7, 2, 0)
    assert choose({"baseline": BASE, "candidate": few, "candidate_2": best}, CompareRequire())[
        0
    ] == ("candidate_2")


def test_one_sentence_for_every_prompt_does_not_go_on_however_it_pleases_the_judge() -> None:
    base = BASE | {"distinct_trigrams": 0.4}
    stuck = model("dpo@1", 90, 10) | {"distinct_trigrams": 0.005}
    plain = model("ppo@1", 70, 30) | {"distinct_trigrams": 0.3}
    two = {"baseline": base, "candidate": stuck}
    winner, why = choose_language(two, CompareRequire())
    assert winner == "baseline"
    for said in ("chat@1 stays", "dpo@1 wins 90.0%", "0.5% of their trigrams", "baseline's 40.0%"):
        assert said in why
    with pytest.raises(FailedPrecondition, match="repeat one another") as caught:
        choose_language(two, CompareRequire(win_rate_low_above=0.5))
    assert caught.value.field == "require.trigrams_at_least"
    # The next best goes on, and it is said who does not.
    winner, why = choose_language({**two, "candidate_2": plain}, CompareRequire())
    assert winner == "candidate_2"
    assert "ppo@1 wins 70.0%" in why
    assert "dpo@1 wins 90.0%" in why
    # Whoever wants it, and a report that has no such figure.
    assert choose_language(two, CompareRequire(trigrams_at_least=0))[0] == "candidate"
    old = {"baseline": BASE, "candidate": model("dpo@1", 90, 10)}
    assert choose_language(old, CompareRequire())[0] == "candidate"


def test_the_words_fit_whoever_goes_on() -> None:
    """A baseline that stays did not win half of the answers against itself."""
    _, why = choose({"baseline": BASE, "candidate": model("dpo@1", 10, 50, 40)}, CompareRequire())
    assert "chat@1 stays" in why
    assert "dpo@1 wins 30.0% of 100 prompts against chat@1 (10 won, 50 lost, 40 tied" in why
    assert "would show it" not in why
    _, same = choose({"baseline": BASE, "candidate": model("dpo@1", 0, 0, 100)}, CompareRequire())
    assert "wins 50.0% of 100 prompts against chat@1 (0 won, 0 lost, 100 tied; p = 1)" in same


def test_a_gate_that_is_not_passed_says_by_how_much_and_what_would_do() -> None:
    models = {"baseline": BASE, "candidate": model("dpo@1", 56, 44)}
    with pytest.raises(
        FailedPrecondition, match=r"dpo@1 wins 56\.0% .* not above 50\.0%"
    ) as caught:
        choose(models, CompareRequire(win_rate_low_above=0.5))
    assert caught.value.field == "require.win_rate_low_above"
    told = re.search(r"some ([\d,]+) prompts would show it", caught.value.message)
    assert told is not None
    # The advice is good: the same shares of as many prompts pass.
    size = int(told[1].replace(",", ""))
    more = model("dpo@1", round(0.56 * size), round(0.44 * size))
    assert choose({"baseline": BASE, "candidate": more}, CompareRequire(win_rate_low_above=0.5))[
        0
    ] == ("candidate")


def test_a_bar_beside_one_half() -> None:
    models = {"baseline": BASE, "candidate": model("dpo@1", 61, 39)}
    low, _ = PairedCounts(61, 39, 0).interval()
    assert choose(models, CompareRequire(win_rate_low_above=low - 1e-6))[0] == "candidate"
    with pytest.raises(FailedPrecondition, match="nothing is promoted"):
        choose(models, CompareRequire(win_rate_low_above=low + 1e-6))
    # A bar below one half is passed by one that is as good; the baseline still stays.
    level = {"baseline": BASE, "candidate": model("dpo@1", 100, 100)}
    assert choose(level, CompareRequire(win_rate_low_above=0.4))[0] == "baseline"


def test_of_several_the_one_that_passed_the_bar_goes_on() -> None:
    """The higher rate is no more than chance above it: many prompts differ there."""
    models = {
        "baseline": BASE,
        "candidate": model("few@1", 200, 60, 740),
        "candidate_2": model("many@1", 580, 420),
    }
    assert choose(models, CompareRequire(win_rate_low_above=0.5))[0] == "candidate_2"
    winner, why = choose(models, CompareRequire(win_rate_low_above=0.55))
    assert winner == "candidate"
    assert "p = 0.0037 of 55.0% or less" in why


@pytest.mark.parametrize(
    ("wins", "losses", "ties", "bar"),
    [(560, 440, 0, 0.55), (530, 470, 0, 0.55), (56, 24, 20, 0.6), (5, 3, 2, 0.45)],
)
def test_figures_of_a_refusal_are_of_its_bar(wins: int, losses: int, ties: int, bar: float) -> None:
    models = {"baseline": BASE, "candidate": model("dpo@1", wins, losses, ties)}
    require = CompareRequire(win_rate_low_above=bar)
    with pytest.raises(FailedPrecondition) as caught:
        choose(models, require)
    pairs = PairedCounts(wins, losses, ties)
    assert f"p = {pairs.p_value(bar):.2g} of {bar:.1%} or less" in caught.value.message
    told = re.search(r"some ([\d,]+) prompts would show it", caught.value.message)
    assert (told is not None) == (pairs.rate > bar)
    if told is not None:
        scale = int(told[1].replace(",", "")) / pairs.of
        more = PairedCounts(round(wins * scale), round(losses * scale), round(ties * scale))
        assert more.p_value(bar) <= LEVEL
        few = PairedCounts(*(round(n * scale / 4) for n in (wins, losses, ties)))
        assert few.p_value(bar) > LEVEL


def test_the_step_gives_a_model_and_takes_models() -> None:
    spec = CompareSpec(
        kind="compare", dataset="$d", judge="$r", baseline="$a", candidate="$b", candidate_3="$c"
    )
    assert spec.produces() == "model"
    assert set(spec.inputs()) == {"dataset", "judge", "baseline", "candidate", "candidate_3"}


def test_a_judge_is_called_judge() -> None:
    text = """
name: a
steps:
  contest: {kind: compare, dataset: d, reward: r, baseline: base, candidate: dpo}
"""
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert "steps.contest.judge: is needed" in caught.value.message
    assert "steps.contest.reward: unknown key" in caught.value.message
