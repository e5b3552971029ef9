"""An adapter and its base made into one whole model: a folder in the base's types, with its
tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from plinth.models.adapters.base import check_base
from plinth.models.adapters.lora import merged_tensors
from plinth.models.adapters.peft_format import put_on, read_adapter
from plinth.models.dtypes import change_lost, short_name
from plinth.models.inherited_settings import add_ends, carry_settings, pad_apart
from plinth.models.reward import RewardModel, save_reward_model
from plinth.models.weights import load_decoder, save_decoder

if TYPE_CHECKING:
    from plinth.shared.store import ArtifactRecord

# Files of a base that a merged model has of its own.
_REPLACED = ("manifest.json", "config.json", "*.safetensors", "*.safetensors.index.json")
# Of a change, in its norm: more than this taken by rounding is told.
TOLD_LOSS = 0.1


def merge(
    base_folder: Path,
    base: ArtifactRecord,
    adapter_folder: Path,
    made: Path,
    *,
    dtype: torch.dtype | None = None,
    allow_other_base: bool | None = False,
) -> tuple[str, list[str]]:
    """Fill the new folder `made`; its artifact's kind, "model" or "reward", and what to tell.

    dtype: of the result; None: the base's, tensor by tensor. allow_other_base: merge though the
    adapter says that it was trained on another model; None: see `check_base`. Raises what
    `read_adapter`, `check_base` and `put_on` raise.
    """
    decoder = load_decoder(base_folder)
    adapter, where = read_adapter(adapter_folder), str(adapter_folder)
    told = check_base(adapter.base, base, decoder, where, insist=allow_other_base)
    model = put_on(decoder, adapter, where)
    if dtype is not None:
        model.stored_dtypes = dict.fromkeys(model.stored_dtypes, dtype)
    shutil.copytree(base_folder, made, ignore=shutil.ignore_patterns(*_REPLACED))
    if isinstance(model, RewardModel):
        save_reward_model(model, made)
        (made / "generation_config.json").unlink(missing_ok=True)  # the base's: it writes no text
    else:
        save_decoder(model, made)
    carry_settings(base_folder, made)
    add_ends(made, adapter.stop_ids)
    if isinstance(model, RewardModel):
        pad_apart(made, next(iter(adapter.stop_ids), None))
    return (
        "reward" if isinstance(model, RewardModel) else "model",
        told + _rounding(base_folder, model, made),
    )


def _rounding(base_folder: Path, model: torch.nn.Module, made: Path) -> list[str]:
    assert isinstance(model.stored_dtypes, dict)
    narrow = set(model.stored_dtypes.values()) - {torch.float32}
    if not narrow:
        return []
    lost = change_lost(base_folder, merged_tensors(model), made)
    if lost <= TOLD_LOSS:
        return []
    names = " and ".join(sorted(short_name(kind) for kind in narrow))
    return [
        f"rounding to {names} took {lost:.0%} of what the adapter changes (in its norm); say "
        "--dtype fp32 to keep all of it"
    ]
