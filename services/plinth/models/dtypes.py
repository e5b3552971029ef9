"""The types that weights are stored in: how they are called, and how a model keeps its own.

A checkpoint is trained and merged in float32. What is saved of it has the type that its base has on
disk, tensor by tensor, so that a bf16 model stays one; an import or an export may say another.
What the rounding takes of a change can be told (`change_lost`): where it is much, tune a base that
was imported in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from plinth.models.decoder import Decoder
from plinth.models.hf.folder import Checkpoint
from plinth.shared.errors import InvalidArgument

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def parse_dtype(text: str) -> torch.dtype | None:
    """ "keep" is None: the type that there is. Raises InvalidArgument for an unknown name."""
    if text == "keep":
        return None
    if text not in DTYPES:
        raise InvalidArgument(
            f"dtype is {text[:40]!r}, must be keep, {', '.join(DTYPES)}", field="dtype"
        )
    return DTYPES[text]


def short_name(dtype: torch.dtype) -> str:
    """ "bf16" for torch.bfloat16."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def long_name(dtype: torch.dtype) -> str:
    """ "bfloat16", as a config.json says it."""
    return str(dtype).removeprefix("torch.")


def common_dtype(tensors: Iterable[Tensor]) -> str:
    """What a config.json says of these tensors: the type of all of them; where they differ,
    float32, which holds any."""
    kinds = {tensor.dtype for tensor in tensors}
    return long_name(kinds.pop() if len(kinds) == 1 else torch.float32)


def cast(tensor: Tensor, dtype: torch.dtype | None, where: str) -> Tensor:
    """The tensor in `dtype` (None: in its own), rounded to nearest.

    Raises InvalidArgument where a finite number becomes infinite: `where` names the tensor.
    """
    if dtype is None or dtype == tensor.dtype:
        return tensor
    made = tensor.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max and not torch.isfinite(made).all():
        raise InvalidArgument(
            f"{where} holds numbers beyond {torch.finfo(dtype).max:g}, the largest of "
            f"{short_name(dtype)}; use bf16 or fp32",
            field="dtype",
        )
    return made


def exactly(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype` where that has each of its numbers, else as it is."""
    made = tensor.to(dtype)
    return made if torch.equal(made.to(tensor.dtype), tensor) else tensor


def as_stored(decoder: Decoder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trained decoder's tensors in the types that its files had.

    A new decoder's stay as they are. A tensor that the files had not (a reward model's head) takes
    the type that all of theirs are in, float32 where they differ. A number that grew beyond fp16
    leaves the whole model in float32: what was learned is not lost for its type.
    """
    stored = decoder.stored_dtypes
    if not stored:
        return dict(tensors)
    kinds = set(stored.values())
    rest = kinds.pop() if len(kinds) == 1 else torch.float32
    try:
        return {name: cast(t, stored.get(name, rest), name) for name, t in tensors.items()}
    except InvalidArgument:
        return {name: tensor.float() for name, tensor in tensors.items()}


def change_lost(base: Path, trained: Mapping[str, Tensor], saved: Path) -> float:
    """‖saved − trained‖ / ‖trained − base‖ over the base's tensors: what rounding took of the
    change, 0 for none. base, saved: checkpoint folders; trained: canonical tensors."""
    before = Checkpoint.open(base)
    after = dict(Checkpoint.open(saved).tensors())
    lost = change = 0.0
    for name, old in before.tensors():
        if name not in trained or name not in after:
            continue
        new = trained[name].detach().cpu().double()
        lost += float((after[name].double() - new).square().sum())
        change += float((new - old.double()).square().sum())
    return (lost / change) ** 0.5 if change else 0.0
