"""A checkpoint folder as Hugging Face lays it out: what it holds, and whether it may be opened.

Reads `config.json`, `generation_config.json` and safetensors, in one file or several with an
index. Runs nothing from a checkpoint and reads no pickle. Tensors come out under canonical names
and in canonical layout, which are those of `Decoder.state_dict()`: Hugging Face's names with the
body's prefix, and every map as [out, in]. Knows nothing of decoders, digests or imports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plinth.models.config import ModelConfig
from plinth.models.families import names_of
from plinth.models.hf import config as hf_config
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_JSON_BYTES = 64 * 2**20

# Of a layer; the heads of a model are never turned.
_MAPS = ("qkv", "q", "k", "v", "o", "gate", "up", "gate_up", "down")
# Constants that old versions of transformers saved among the weights.
_CONSTANTS = (
    ".rotary_emb.inv_freq",
    *(".attn.bias", ".attn.masked_bias"),
    *(".attention.bias", ".attention.masked_bias"),
)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; NotFound, or InvalidArgument naming the file."""
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidArgument(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def read_config(folder: Path) -> ModelConfig:
    """The folder's ModelConfig, from both of its configuration files."""
    config = read_json(folder / "config.json")
    generation_file = folder / "generation_config.json"
    generation = read_json(generation_file) if generation_file.exists() else None
    refuse_code(folder)
    return hf_config.from_hf(config, generation)


def refuse_code(folder: Path) -> None:
    """Raise InvalidArgument when any of the folder's configurations asks for its own code; of the
    `auto_map` in config.json `hf.config` says which may stand there."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        if path.exists():
            content = read_json(path)
            mapped = name != "config.json" and content.get("auto_map")
            if mapped or content.get("trust_remote_code"):
                raise InvalidArgument(
                    f"{path}: auto_map asks to run code from the checkpoint; Plinth runs none",
                    reason="REMOTE_CODE",
                    field="auto_map",
                )


def is_turned(family: str, name: str) -> bool:
    """True for tensors that the family's checkpoints store as [in, out]."""
    names = names_of(family)
    return names.turned and any(
        name.endswith(f".{names.parts[part]}.weight") for part in _MAPS if part in names.parts
    )


def canonical_name(config: ModelConfig, stored: str) -> str | None:
    """The canonical name of a stored tensor; None when it is a constant and no weight."""
    if stored.endswith(_CONSTANTS):
        return None
    names = names_of(config.family)
    # The hub's oldest files hold the bare body.
    if not stored.startswith((f"{names.body}.", f"{names.head}.", "score.")):
        return f"{names.body}.{stored}"
    return stored


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder: its configuration and where each canonical tensor lies."""

    folder: Path
    config: ModelConfig
    # canonical name → (file, stored name)
    places: Mapping[str, tuple[Path, str]]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Check the folder and index its tensors, reading none.

        Raises NotFound without weights, InvalidArgument for what cannot be opened, DataLoss for a
        file that is cut off.
        """
        if not folder.is_dir():
            raise NotFound(f"{folder}: no such folder")
        config = read_config(folder)
        places: dict[str, tuple[Path, str]] = {}
        for file, expected in weight_files(folder).items():
            stored = set(open_weights(file).keys())
            if expected is not None and expected - stored:
                raise DataLoss(f"{file}: tensor {min(expected - stored)!r} of the index is missing")
            for name in stored if expected is None else expected:
                canonical = canonical_name(config, name)
                if canonical is None:
                    continue
                if canonical in places:
                    raise InvalidArgument(f"{file}: tensor {name!r} occurs twice")
                places[canonical] = (file, name)
        return cls(folder, config, places)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each (canonical name, tensor as stored, maps as [out, in]), sorted by name.

        A file is mapped, so a tensor costs memory only once it is used. Raises DataLoss for a
        tensor with NaN or infinity, InvalidArgument for one that is not fp32, fp16 or bf16.
        """
        opened: dict[Path, Any] = {}
        for name in sorted(self.places):
            file, stored = self.places[name]
            if file not in opened:
                opened[file] = open_weights(file)
            tensor: Tensor = opened[file].get_tensor(stored)
            check_finite(tensor, f"{file}: tensor {stored!r}")
            if is_turned(self.config.family, name) and tensor.dim() == 2:
                tensor = tensor.t()
            yield name, tensor


def check_finite(tensor: Tensor, where: str) -> None:
    """Refuse what no trained weight is: another type than float, NaN, infinity."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise InvalidArgument(f"{where} is {tensor.dtype}; only fp32, fp16 and bf16 can be opened")
    if not torch.isfinite(tensor).all():
        raise DataLoss(f"{where} holds NaN or infinity", reason="NOT_FINITE")


def open_weights(file: Path) -> Any:
    """A safetensors file, mapped. Raises DataLoss where it is damaged or cut off."""
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise DataLoss(f"{file}: damaged or cut off ({error})", reason="DAMAGED_FILE") from error


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Each weight file with the tensors that the index expects in it (None: all that it has)."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InvalidArgument(f"{folder / INDEX}: weight_map is missing")
        files: dict[Path, set[str] | None] = {}
        for name, file_name in weight_map.items():
            # The index is the checkpoint's word: it may name files beside it and no others.
            if not isinstance(file_name, str) or Path(file_name).name != file_name:
                raise InvalidArgument(f"{folder / INDEX}: {file_name!r} is not a plain file name")
            expected = files.setdefault(folder / file_name, set())
            assert expected is not None
            expected.add(name)
        for file in files:
            if not file.is_file():
                raise DataLoss(f"{file}: named by the index and missing", reason="MISSING_SHARD")
        return files
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise InvalidArgument(
            f"{folder}: its weights are a pickle ({pickles[0]}), which could run code; save them "
            "again with safe_serialization=True",
            reason="PICKLED_WEIGHTS",
        )
    raise NotFound(f"{folder}: neither {WEIGHTS} nor {INDEX} is there")
