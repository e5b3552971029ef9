"""What is held out: by prompt, and about as much as was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.shared.errors import InvalidArgument
from plinth.shared.splits import Overlap, held_out, opening, prompt_key, split_share

USER, BOT = "user", "assistant"


@pytest.mark.parametrize(
    "same",
    ["What is  A?", " what is a?\n", "WHAT\tIS\u00a0A?", "What is \uff21?", "what is a\uff1f"],
)
def test_prompts_that_differ_in_form_only_have_one_key(same: str) -> None:
    assert prompt_key([(USER, same)]) == prompt_key([(USER, "What is a?")])


@pytest.mark.parametrize("other", ["What is b?", "What is a", "What is a? Say."])
def test_others_have_another_key(other: str) -> None:
    assert prompt_key([(USER, other)]) != prompt_key([(USER, "What is a?")])


def test_a_conversation_has_the_key_of_its_opening() -> None:
    first = [("system", "Be brief."), (USER, "Hi")]
    assert opening(first) == tuple(first)
    for on in ([(BOT, "Yes")], [(BOT, "No"), (USER, "Why?"), (BOT, "So.")], [(BOT, "")]):
        assert prompt_key([*first, *on]) == prompt_key(first)
    greeted = [(BOT, "Hello!"), (USER, "Hi")]
    assert opening([*greeted, (BOT, "Yes")]) == tuple(greeted)
    # Another system prompt asks something else, and a role is part of what is asked.
    assert prompt_key(first[1:]) != prompt_key(first)
    assert prompt_key([("system", "Hi")]) != prompt_key([(USER, "Hi")])


@given(
    sizes=st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(1, 10**6), max_size=60),
    fraction=st.floats(0.001, 0.5),
)
def test_the_share_is_near_to_what_was_asked(sizes: dict[bytes, int], fraction: float) -> None:
    chosen = held_out(sizes, fraction)
    assert chosen <= sizes.keys()
    assert bool(chosen) or len(sizes) < 2
    assert len(chosen) < max(1, len(sizes)) or not sizes or not chosen
    if chosen:
        held, wanted = sum(sizes[key] for key in chosen), fraction * sum(sizes.values())
        assert held <= max(2 * wanted, min(sizes.values()))
    assert not held_out(sizes, 0)


def test_of_many_the_hash_alone_decides() -> None:
    keys = {prompt_key([(USER, f"prompt {n}")]): 10 for n in range(2000)}
    assert held_out(keys, 0.1) == {key for key in keys if split_share(key) < 0.1}
    fewer = dict(list(keys.items())[:1000])
    assert held_out(fewer, 0.1) == held_out(keys, 0.1) & fewer.keys()


def test_what_two_splits_share_is_refused() -> None:
    overlap = Overlap("corpus c@1", "prompt")
    overlap.add("train", b"a", "What is a?")
    overlap.add("train", b"a", "What is a?")
    overlap.add("validation", b"b", "What is b?")
    with pytest.raises(InvalidArgument, match=r"corpus c@1: the prompt 'What is a\?' is in train"):
        overlap.add("validation", b"a", "What is a?")
