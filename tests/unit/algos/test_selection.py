"""Choices among answers against enumeration and numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.algos.selection import all_pairs, best_of, extremes, softmax, top_k, vote, votes
from plinth.shared.errors import InvalidArgument

REWARDS = st.lists(st.sampled_from([-1.5, 0.0, 0.25, 1.0, 7.0]), min_size=1, max_size=7)


@given(REWARDS, st.integers(1, 9))
def test_the_best_k_are_those_that_no_other_choice_beats(rewards, k) -> None:
    found = top_k(rewards, k)
    assert len(set(found)) == len(found) == min(k, len(rewards))
    chosen = [rewards[i] for i in found]
    assert chosen == sorted(chosen, reverse=True)
    others = itertools.combinations(rewards, len(found))
    assert sum(chosen) == max(sum(other) for other in others)
    # Stable: numpy's stable sort of the negated rewards is an independent statement of it.
    assert found == np.argsort(-np.array(rewards), kind="stable")[:k].tolist()
    assert best_of(rewards) == int(np.argmax(rewards))


@given(REWARDS, st.sampled_from([0.0, 0.25, 1.0, 9.0]))
def test_pairs_are_all_that_lie_further_apart_than_the_gap(rewards, min_gap) -> None:
    found = all_pairs(rewards, min_gap)
    truth = {
        (i, j)
        for i, j in itertools.product(range(len(rewards)), repeat=2)
        if rewards[i] > rewards[j] + min_gap
    }
    assert set(found) == truth
    assert len(found) == len(truth)
    gaps = [rewards[i] - rewards[j] for i, j in found]
    assert gaps == sorted(gaps, reverse=True)
    if truth:
        best, worst = extremes(rewards, min_gap)
        assert (best, worst) == (int(np.argmax(rewards)), int(np.argmin(rewards)))
    else:
        assert extremes(rewards, min_gap) is None


def test_a_constant_reward_has_no_pairs() -> None:
    assert extremes([0.5] * 4) is None
    assert all_pairs([0.5] * 4) == []


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from([0.0, 0.5, 1.0, 3.0])),
        max_size=8,
    )
)
def test_the_vote_is_the_sum_of_weights(ballots) -> None:
    answers, weights = [a for a, _ in ballots], [w for _, w in ballots]
    totals = {
        one: sum(w for a, w in ballots if a == one) for one in {a for a in answers if a is not None}
    }
    totals = {one: total for one, total in totals.items() if total > 0}
    found = vote(answers, weights)
    if not totals:
        assert found is None
        return
    assert totals[found.answer] == max(totals.values())
    assert found.share == pytest.approx(totals[found.answer] / sum(totals.values()))
    assert [answers[i] for i in found.voters] == [found.answer] * len(found.voters)


def test_a_majority_and_how_a_weight_turns_it() -> None:
    answers = ["18", "17", "18", None, "17", "18"]
    assert vote(answers).answer == "18"
    assert vote(answers).share == pytest.approx(3 / 5)
    assert vote(answers, [0.1, 0.9, 0.1, 5.0, 0.8, 0.1]).answer == "17"
    assert vote(["b", "a"]).answer == "b"  # a tie: the earlier one
    assert vote([None, None]) is None
    assert vote([]) is None


def test_every_answer_has_its_share_the_heaviest_first() -> None:
    answers = ["a", "b", None, "c", "b", "a"]
    cast = votes(answers, [0.5, 2.0, 9.0, 0.0, 1.0, 1.5])
    assert [(one.answer, one.share, one.voters) for one in cast] == [
        ("b", 0.6, (1, 4)),
        ("a", 0.4, (0, 5)),
    ]
    assert votes(answers, [0.0] * 6) == []


@given(st.lists(st.floats(-2000, 2000), min_size=1, max_size=8))
def test_softmax_is_the_share_of_the_exponentials(scores) -> None:
    weights = softmax(scores)
    assert sum(weights) == pytest.approx(1)
    shifted = np.exp(np.array(scores) - max(scores))
    np.testing.assert_allclose(weights, shifted / shifted.sum(), rtol=1e-12, atol=0)


def test_weights_by_likelihood_are_those_of_the_paper() -> None:
    """Wang et al. 2023, equation 1: exp of the mean log-probability, for all up to a factor."""
    means = [-0.5, -1.25, -2.0]
    weights = softmax(means)
    assert [w / weights[0] for w in weights] == pytest.approx(
        [np.exp(m) / np.exp(means[0]) for m in means]
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda: top_k([], 1),
        lambda: top_k([1.0], 0),
        lambda: best_of([1.0, float("nan")]),
        lambda: extremes([1.0, float("inf")]),
        lambda: all_pairs([1.0, 2.0], -0.1),
        lambda: all_pairs([1.0, 2.0], float("nan")),
        lambda: vote(["a"], [-1.0]),
        lambda: vote(["a"], [float("nan")]),
        lambda: vote(["a", "b"], [1.0]),
        lambda: softmax([]),
        lambda: softmax([1.0, float("inf")]),
    ],
)
def test_what_makes_no_sense_is_refused(ask) -> None:
    with pytest.raises(InvalidArgument):
        ask()
