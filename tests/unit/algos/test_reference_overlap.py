"""Answers about what was asked against answers about anything, by counting and by simulation."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from plinth.algos.reference_overlap import MOST, content_words, reference_overlap

WORDS = [f"w{''.join(chr(97 + int(c)) for c in str(n))}x" for n in range(400)]


def test_content_words_are_what_is_spoken_of() -> None:
    assert content_words("What does `os.path_join2` do with the Paths?") == {
        "path",
        "join",
        "paths",
    }
    assert content_words("Größe der Datei, 3 MB") == {"größe", "der", "datei"}


def test_shares_are_counted_as_by_hand() -> None:
    """The word of the prompt counts for neither side; every share by its own denominator."""
    prompts = ["about alpha", "about beta", "about gamma"]
    references = ["alpha apple pear", "beta plum", "gamma apple fig kiwi"]
    answers = ["alpha apple apple", "alpha beta plum", "nothing"]
    found = reference_overlap(prompts, answers, references)
    own = (1 / 2 + 1 / 1 + 0 / 3) / 3
    others = ((0 / 2 + 1 / 4) + (1 / 3 + 0 / 4) + (0 / 3 + 0 / 2)) / 6
    assert found.own == pytest.approx(own)
    assert found.others == pytest.approx(others)


def test_answers_about_anything_are_found_at_their_level() -> None:
    """200 sets of answers that know nothing: p ≤ 5 % about as often as that."""
    chance = random.Random(3)

    def text() -> str:
        return " ".join(chance.choices(WORDS, k=8))

    found = 0
    for _ in range(200):
        prompts, answers, references = ([text() for _ in range(40)] for _ in range(3))
        found += reference_overlap(prompts, answers, references).p_value <= 0.05
    assert found <= 20  # binomial, 200 at 5 %: above 20 in 0.1 % of cases


def test_answers_that_name_a_word_in_ten_of_their_reference_are_found() -> None:
    chance = random.Random(4)
    references = [" ".join(chance.sample(WORDS, 10)) for _ in range(200)]
    answers = [" ".join([*chance.sample(WORDS, 7), chance.choice(r.split())]) for r in references]
    prompts = [""] * 200
    told = reference_overlap(prompts, answers, references)
    assert told.own > 0.1 > told.others
    assert told.p_value == 1 / 2000
    # To say the question again is no answer.
    again = reference_overlap(references, references, references)
    assert (again.own, again.p_value) == (0, 1)


def test_what_shows_nothing_says_so() -> None:
    assert reference_overlap([], [], []).p_value == 1
    assert reference_overlap(["a"], ["word"], ["word"]).p_value == 1
    assert reference_overlap(["a", "b"], ["x", "y"], ["", ""]).p_value == 1
    for wrong in ((["a"], ["b"], ["c", "d"]), (["a"], [], ["c"])):
        with pytest.raises(ValueError, match=r"prompts, \d answers and \d references"):
            reference_overlap(*wrong)


def test_what_many_prompts_take_is_bounded() -> None:
    """Of 200,000 the square alone would be 160 GB."""
    few = [WORDS[number % len(WORDS)] for number in range(MOST)]
    many = few + ["other words"] * (200_000 - MOST)
    blank = [""] * len(many)
    assert reference_overlap(blank, many, many) == reference_overlap(blank[:MOST], few, few)


def test_memory_is_not_that_of_all_words() -> None:
    """60,000 words over as many prompts as are looked at: a table of both would take 240 MB."""
    words = ["".join(random.Random(n).choices("abcdefghijklmnop", k=12)) for n in range(60_000)]
    texts = [" ".join(words[n * 60 : n * 60 + 60]) for n in range(MOST)]
    tracemalloc.start()
    try:
        told = reference_overlap(["" for _ in texts], texts, texts)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (told.own, told.others, told.p_value) == (1, 0, 1 / 2000)
    assert most < 120e6
