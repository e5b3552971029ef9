"""What is too long is counted as the objectives leave it out, and told before a training starts."""

from __future__ import annotations

import numpy as np
import pytest

import trainings
from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake
from plinth.trainer.data.documents import Document
from plinth.trainer.data.lengths import check_lengths, length_intake
from plinth.trainer.data.shards import Split
from plinth.trainer.objectives.pairs import Pairs
from plinth.trainer.objectives.sft import SupervisedFineTuning
from plinth.trainer.policy.prompts import prompts_of

HELD_OUT = "more held out"


def words(count: int) -> str:
    return " ".join(["word"] * count)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Questions and answers of 1 to 40 words."""
    documents = [
        Document(messages=(("user", f"{n} {words(n % 40)}"), ("assistant", words(1 + n % 7))))
        for n in range(80)
    ]
    return trainings.dataset(tmp_path_factory.mktemp("chats"), documents)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return trainings.dataset(tmp_path_factory.mktemp("pairs"), trainings.pairs(60))


@pytest.mark.parametrize("length", [2, 16, 40, 100, 400])
def test_chats_are_counted_as_they_are_packed(chats, length):
    split = Split(chats, "train")
    (told,) = length_intake(chats, "sft", length)
    packs = SupervisedFineTuning(split, split, length, seed=0, pad_id=0)._packs
    assert told.taken == sum(map(len, packs))
    assert told.taken + told.missing == split.documents
    # Cut ones, by hand: an id of an answer lies behind the last target.
    cut = sum(
        bool(mask[1 : length + 1].any() and mask[length + 1 :].any())
        for mask in (split.document(n)[1] for n in range(split.documents))
    )
    told.noted.pop(HELD_OUT, None)
    assert sum(told.noted.values()) == cut


@pytest.mark.parametrize("objective", ["dpo", "reward"])
@pytest.mark.parametrize("length", [20, 30, 38, 100])
def test_pairs_are_counted_as_they_are_taken(pairs, objective, length):
    split = Split(pairs, "train")
    (told,) = length_intake(pairs, objective, length)
    longest = length + 1 if objective == "dpo" else length
    needed = split.lengths().reshape(-1, 2).max(axis=1)
    assert told.taken == int((needed <= longest).sum())
    assert told.taken + told.missing == split.documents // 2
    if told.taken:
        assert told.taken == len(Pairs(split, longest, pad_id=0))
    # What the dataset's count loses to the validation is said too.
    held_out = Split(pairs, "validation").lengths().reshape(-1, 2).max(axis=1)
    assert told.noted.get(HELD_OUT, 0) == int((held_out <= longest).sum())
    if told.missing:  # by the setting's own number: DPO holds a token more than it reads
        assert told.left_out == {f"too long for sequence_length {length}": told.missing}


@pytest.mark.parametrize("room", [5, 12, 60])
def test_prompts_are_counted_as_a_policy_takes_them(chats, pairs, room):
    for dataset in (chats, pairs):
        (told,) = length_intake(dataset, "ppo", room)
        assert told.taken == len(prompts_of(Split(dataset, "train"), room))
        assert told.taken + told.missing == len(prompts_of(Split(dataset, "train"), 10**6))


def test_plain_text_has_nothing_too_long(tmp_path):
    assert length_intake(trainings.dataset(tmp_path, trainings.texts(20)), "clm", 4) == []


def test_the_advice_leads_to_a_training(chats):
    """A longer sequence where there is room for one, and never a shorter one."""
    few = length_intake(chats, "sft", 40)
    assert few[0].share > 0.5
    with pytest.raises(InvalidArgument, match=r"Raise sequence_length.*context of 400") as caught:
        check_lengths(few, None, 40, 400)
    assert few[0].line() in caught.value.message
    check_lengths(length_intake(chats, "sft", 400), None, 400, 400)
    accepted = float(caught.value.message.split("max_left_out: ")[1])
    check_lengths(few, accepted, 40, 400)


@pytest.mark.parametrize("accepted", [None, 1.0])
def test_when_all_are_too_long_accepting_it_is_no_way_out(chats, accepted):
    told = length_intake(chats, "sft", 2)
    assert told[0].taken == 0
    with pytest.raises(InvalidArgument, match="Raise sequence_length") as caught:
        check_lengths(told, accepted, 2, 400)
    assert "max_left_out" not in caught.value.message
    with pytest.raises(InvalidArgument, match="context is 2, so sequence_length can't be raised"):
        check_lengths(told, accepted, 2, 2)
    with pytest.raises(InvalidArgument, match="Make max_new_tokens smaller"):
        check_lengths([Intake("prompts", 0, {"longer than 3 tokens": 4})], accepted, 3, 400)


def test_lengths_of_prompts_are_told_in_tokens(chats):
    split = Split(chats, "train")
    lengths = sorted(len(prompt) for prompt in prompts_of(split, 10**6))
    room = int(np.median(lengths))
    (told,) = length_intake(chats, "grpo", room)
    assert told.left_out == {f"longer than {room} tokens": sum(n > room for n in lengths)}
