"""A checkpoint's weight files written anew: in another type, in shards of a size.

Names and layout stay as they lie on disk, so it serves every kind of model. One shard is in memory
at a time. Format: `model.safetensors`, or `model-00001-of-00003.safetensors` … and
`model.safetensors.index.json`, as `save_pretrained` of transformers writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from plinth.models.dtypes import cast
from plinth.models.hf.folder import FLOAT_DTYPES, INDEX, check_finite, open_weights, weight_files
from plinth.models.weights import write_json
from plinth.shared.errors import InvalidArgument

_PATTERN = "model{suffix}.safetensors"
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
assert set(_TYPES.values()) == set(FLOAT_DTYPES)


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, not yet read: its file, and what it will be, without its numbers."""

    file: Path
    meta: Tensor


def stored_tensors(files: list[Path], dtype: torch.dtype | None) -> dict[str, Stored]:
    """Name on disk → where it is, and its shape in `dtype` (None: in its own).

    Raises DataLoss for a damaged file, InvalidArgument for a tensor that is no fp32, fp16 or bf16.
    """
    found: dict[str, Stored] = {}
    for file in files:
        opened = open_weights(file)
        for name in sorted(opened.keys()):
            piece = opened.get_slice(name)
            if (kind := piece.get_dtype()) not in _TYPES:
                raise InvalidArgument(f"{file}: tensor {name!r} is {kind}, not {', '.join(_TYPES)}")
            meta = torch.empty(piece.get_shape(), dtype=dtype or _TYPES[kind], device="meta")
            found[name] = Stored(file, meta)
    return found


def model_tensors(folder: Path, dtype: torch.dtype | None) -> dict[str, Stored]:
    """Those of a model's folder, in one file or several with an index."""
    return stored_tensors(list(weight_files(folder)), dtype)


def size_of(tensors: dict[str, Stored]) -> int:
    """Bytes on disk, headers left out."""
    return sum(stored.meta.nbytes for stored in tensors.values())


def dtype_of(tensors: dict[str, Stored]) -> torch.dtype:
    """What all of them are in; float32, which holds any, where they differ."""
    kinds = {stored.meta.dtype for stored in tensors.values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def check_shard_size(text: str) -> None:
    """Raise InvalidArgument for a size that is none."""
    try:
        split_torch_state_dict_into_shards({}, filename_pattern=_PATTERN, max_shard_size=text)
    except ValueError as error:
        raise InvalidArgument(
            f"max_shard_size is {text[:40]!r}, must be a size such as 5GB or 500MB",
            field="max_shard_size",
        ) from error


def write_shards(tensors: dict[str, Stored], out: Path, max_shard_size: str) -> None:
    """One file, or shards of at most `max_shard_size` (a tensor that is larger has its own).

    Raises DataLoss for NaN or infinity, InvalidArgument for what a narrower type can't hold.
    """
    split = split_torch_state_dict_into_shards(
        {name: stored.meta for name, stored in tensors.items()},
        filename_pattern=_PATTERN,
        max_shard_size=max_shard_size,
    )
    for file_name, names in split.filename_to_tensors.items():
        write_file(tensors, names, out / file_name)
    if split.is_sharded:
        index: dict[str, Any] = {
            "metadata": split.metadata,
            "weight_map": dict(sorted(split.tensor_to_filename.items())),
        }
        write_json(out / INDEX, index)


def write_file(tensors: dict[str, Stored], names: list[str], path: Path) -> None:
    """These tensors in one safetensors file."""
    save_file(dict(_read(tensors, names)), str(path), metadata={"format": "pt"})


def _read(tensors: dict[str, Stored], names: list[str]) -> Iterator[tuple[str, Tensor]]:
    opened: dict[Path, Any] = {}
    for name in names:
        stored = tensors[name]
        if stored.file not in opened:
            opened[stored.file] = safe_open(str(stored.file), framework="pt", device="cpu")
        tensor: Tensor = opened[stored.file].get_tensor(name)
        where = f"{stored.file}: tensor {name!r}"
        check_finite(tensor, where)
        yield name, cast(tensor, stored.meta.dtype, where).contiguous()
