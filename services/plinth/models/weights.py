"""Decoders from folders, folders from decoders, and the digest that names a set of weights.

Shapes: a map is [out, in] in a Decoder and in the digest; GPT-2's are [in, out] on disk, as
transformers wants them. Knows nothing of tokenizers, artifacts or where a folder came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plinth.models.adapters.lora import merged_tensors
from plinth.models.config import ModelConfig
from plinth.models.decoder import Decoder
from plinth.models.dtypes import as_stored, common_dtype
from plinth.models.families import names_of
from plinth.models.hf import config as hf_config
from plinth.models.hf.folder import WEIGHTS, Checkpoint, is_turned
from plinth.shared.errors import InvalidArgument


def load_decoder(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Decoder:
    """The decoder that `folder` holds, its weights cast to `dtype` on `device`.

    Raises NotFound (no weights), InvalidArgument (unknown architecture, missing, unexpected or
    misshapen tensors) or DataLoss (cut off file, NaN, infinity), naming file and tensor.
    """
    checkpoint = Checkpoint.open(folder)
    tensors = dict(checkpoint.tensors())
    check_tensors(checkpoint.config, tensors, str(folder))
    decoder = Decoder(checkpoint.config).to(dtype=dtype, device=device)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(tensors[name])
            if dtype != tensors[name].dtype and not torch.isfinite(parameter).all():
                raise InvalidArgument(
                    f"{folder}: tensor {name!r} holds numbers beyond "
                    f"{torch.finfo(dtype).max:g}, the largest of {dtype}; use bf16 or fp32"
                )
    decoder.stored_dtypes = {name: tensors[name].dtype for name, _ in decoder.named_parameters()}
    return decoder


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise InvalidArgument unless these are exactly the tensors of a decoder of this config.

    A tied model's file may hold the output map too: it must then equal the embedding.
    """
    # Of experts there may be so many that their modules alone weigh a gigabyte.
    refuse_names([name for name in _last_experts(config) if name not in tensors], "missing", where)
    with torch.device("meta"):
        decoder = Decoder(config)
    wanted = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    head, table = tied_names(config)
    allowed = wanted.keys() | ({head} if config.tie_embeddings else set())
    refuse_names(sorted(wanted.keys() - tensors.keys()), "missing", where)
    refuse_names(sorted(tensors.keys() - allowed), "not a part of this decoder", where)
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise InvalidArgument(
                f"{where}: tensor {name!r} is {list(tensors[name].shape)}, "
                f"the configuration asks for {list(shape)}"
            )
    both = config.tie_embeddings and head in tensors
    if both and not torch.equal(tensors[table], tensors[head]):
        raise InvalidArgument(
            f"{where}: the configuration ties the output map to the embedding, "
            f"yet {head!r} differs from it; set tie_word_embeddings to false"
        )


def _last_experts(config: ModelConfig) -> list[str]:
    """A tensor of the last expert of each layer that has experts."""
    if config.experts is None or "expert_down" not in names_of(config.family).parts:
        return []
    names, last = names_of(config.family), config.experts.count - 1
    down = names.parts["expert_down"].format(last)
    sparse = [number for number, kind in enumerate(config.kinds) if kind.experts]
    return [f"{names.layer.format(number)}.{down}.weight" for number in sparse]


def tied_names(config: ModelConfig) -> tuple[str, str]:
    """The tensors of the output map and of the embedding, which may be one."""
    names = names_of(config.family)
    return f"{names.head}.weight", f"{names.embedding}.weight"


def refuse_names(names: Sequence[str], what: str, where: str) -> None:
    """InvalidArgument that names the first of `names`, if there are any."""
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise InvalidArgument(f"{where}: tensor {names[0]!r}{more} is {what}")


def save_decoder(decoder: Decoder, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors; transformers opens them.

    Adapters are merged into their maps. What came from files is saved in their types, whatever
    it was computed in; what is new, in its own.
    """
    save_tensors(decoder.config, as_stored(decoder, merged_tensors(decoder)), folder)


def save_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """The same from canonical tensors. Each file appears whole: written beside, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = hf_config.to_hf(config) | {"dtype": common_dtype(tensors.values())}
    write_json(folder / "config.json", content)
    write_json(folder / "generation_config.json", generation_config(config))
    partial = folder / f"{WEIGHTS}.partial"
    try:
        save_file(stored_layout(config, tensors), str(partial), metadata={"format": "pt"})
        partial.replace(folder / WEIGHTS)
    finally:
        partial.unlink(missing_ok=True)


def stored_layout(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical tensors as a checkpoint holds them: GPT-2's maps as [in, out], all contiguous."""
    return {
        name: (tensor.detach().t() if is_turned(config.family, name) else tensor.detach())
        .cpu()
        .contiguous()
        for name, tensor in tensors.items()
    }


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """What `generation_config.json` says about this model: its special ids."""
    ids = hf_config.to_hf(config)
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {key: ids[key] for key in keys if ids[key] is not None}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` to `path` at once: a reader sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def weights_digest(source: Path | Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> str:
    """The name of a set of weights, "sha256:<hex>": a Merkle root over the canonical tensors.

    leaf = sha256(name, NUL, dtype, NUL, shape, NUL, little-endian bytes, maps as [out, in]);
    root = sha256 over the leaves in order of their tensors' names. `source` is a folder, hashed as
    stored, or a `Decoder.state_dict()`, hashed in the dtype that it has: a bf16 folder that was
    loaded as fp32 has another name, since it gives other bits; dtype: hashed as loaded so, one
    tensor after another.
    """
    if isinstance(source, Path):
        checkpoint = Checkpoint.open(source)
        config = checkpoint.config
        skip = {tied_names(config)[0]} if config.tie_embeddings else set()
        tensors = ((n, t) for n, t in checkpoint.tensors() if n not in skip)
    else:
        tensors = ((name, source[name]) for name in sorted(source))
    root = hashlib.sha256()
    for name, tensor in tensors:
        root.update(_leaf(name, tensor if dtype is None else tensor.to(dtype)))
    return f"sha256:{root.hexdigest()}"


def _leaf(name: str, tensor: Tensor) -> bytes:
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = ",".join(str(n) for n in tensor.shape)
    leaf = hashlib.sha256(f"{name}\0{dtype}\0{shape}\0".encode())
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    leaf.update(raw.numpy().data)
    return leaf.digest()
