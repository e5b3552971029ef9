"""What of a dataset fits into a training's sequences: told, and checked, before it starts.

The same rules as the objectives' own (`objectives/sft.py`, `objectives/pairs.py`,
`policy/prompts.py`), counted over the training split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake, check_intake
from plinth.shared.splits import SPLITS
from plinth.trainer.data.shards import Mask, Split

_FIELD = "sequence_length"
_UNITS = {"sft": "chats", "dpo": "pairs", "reward": "pairs"}


def learnable(mask: Mask, length: int) -> bool:
    """Whether something of an answer is left in the `length` tokens that are predicted: the first
    token is never a target, and a target at `length` needs input up to `length` - 1."""
    return bool(mask[1 : length + 1].any())


def length_intake(dataset: Path, objective: str, length: int) -> list[Intake]:
    """Of chats ("sft"), pairs ("dpo", "reward") or a policy's prompts, those that `length` tokens
    hold: a sequence, or the longest prompt. Plain text is cut into sequences: none is too long."""
    if objective == "clm":
        return []
    intake, held_out = (_counted(Split(dataset, n), objective, length) for n in SPLITS)
    if held_out.taken:
        intake.note("more held out", held_out.taken)
    return [intake]


def _counted(split: Split, objective: str, length: int) -> Intake:
    intake = Intake(_UNITS.get(objective, "prompts"))
    if objective == "sft":
        _count_chats(split, length, intake)
    elif objective in _UNITS:
        longest = length + (objective == "dpo")  # DPO predicts, so it never reads the last one
        needed = split.lengths().reshape(-1, 2).max(axis=1)
        _count(needed, longest, f"too long for sequence_length {length}", intake)
    else:
        _count(_prompt_lengths(split), length, f"longer than {length} tokens", intake)
    return intake


def check_lengths(intakes: list[Intake], limit: float | None, length: int, context: int) -> None:
    """InvalidArgument (LEFT_OUT) for more than `limit` that `length` does not hold, and for all.
    `context` is the model's: no sequence may be longer."""
    for intake in intakes:
        remedy = remedy_for(intake, length, context)
        if intake.missing and not intake.taken:  # whatever is accepted, there is nothing to learn
            raise InvalidArgument(f"{intake.line()}. {remedy}", reason="LEFT_OUT", field=_FIELD)
        check_intake([intake], limit, remedy)


def remedy_for(intake: Intake, length: int, context: int) -> str:
    """What lets in more of it."""
    if intake.unit == "prompts":
        return "Make max_new_tokens smaller or take shorter prompts"
    if length < context:
        return f"Raise sequence_length, up to the model's context of {context}"
    return (
        f"The model's context is {context}, so sequence_length can't be raised: take "
        f"shorter {intake.unit} or a model with a longer context"
    )


def _count_chats(split: Split, length: int, intake: Intake) -> None:
    for number in range(split.documents):
        ids, mask = split.document(number)
        if learnable(mask, length):
            intake.taken += 1
            if len(ids) > length + 1 and mask[length + 1 :].any():
                intake.note(f"cut at {length} tokens, in an answer or before one")
        elif mask.any():
            intake.leave_out(f"whose answers begin after {length} tokens")
        else:
            intake.leave_out("without a token to learn")


def _count(needed: np.ndarray, longest: int, why: str, intake: Intake) -> None:
    long = int((needed > longest).sum())
    intake.taken = len(needed) - long
    if long:
        intake.leave_out(why, long)


def _prompt_lengths(split: Split) -> np.ndarray:
    """Tokens of each different prompt."""
    if split.info.form == "prompts":
        found = {split.document(number)[0].tobytes() for number in range(split.documents)}
    else:
        found = set()
        step = 2 if split.info.form == "pairs" else 1
        for number in range(0, split.documents, step):
            ids, mask = split.document(number)
            if mask.any():
                found.add(ids[: int(np.flatnonzero(mask)[0])].tobytes())
    return np.array([len(raw) // 8 for raw in found], np.int64)
