"""Adapters in the format of Hugging Face's PEFT: written so that `PeftModel.from_pretrained` opens
them on their base, and read with every setting that this decoder would not compute refused.

    adapter_config.json         peft_type LORA, r, lora_alpha, target_modules, …
    adapter_model.safetensors   base_model.model.<map>.lora_A.weight [r, in]
                                base_model.model.<map>.lora_B.weight [out, r]

    base.json                   ours alone: weights_digest, of the base in float32

The last one keeps an adapter of ours from being put on another model of the same shape; PEFT passes
it by, and writes none. (Not in the safetensors' metadata, whose keys come in any order: equal
adapters shall be equal files.) Layout: PEFT keeps A and B of GPT-2's Conv1D
maps as it keeps all others; only the base is transposed on disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plinth.models.decoder import Decoder
from plinth.models.hf import check_finite, read_json
from plinth.models.layers import Linear
from plinth.models.limits import flag, shown
from plinth.models.lora import MAX_ALPHA, MAX_RANK, LoraConfig, adapters, attach_one, base_tensors
from plinth.models.lora import target_names as names_of
from plinth.models.reward import RewardModel
from plinth.models.weights import weights_digest, write_json
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(?P<map>.+)\.lora_(?P<side>[AB])\.weight")

_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
}
# Where the adapter came from, how it was trained, and which maps it is on, which its tensors say.
_INERT = """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config
    exclude_modules fan_in_fan_out inference_mode layers_pattern layers_to_transform loftq_config
    lora_dropout lora_ga_config megatron_core peft_version qalora_group_size revision
    runtime_config target_modules task_type
"""
# What a setting may be without changing what is computed. One that stands in neither list is
# refused: a later PEFT's may compute something else.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "megatron_config": (None, {}),
    "monteclora_config": (None, {}),
    "velora_config": (None, {}),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "use_bdlora": (None, False, {}),
}
# Ways to begin that leave the base as it is; the others (pissa, olora, …) change it.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "kaiming")


# -- writing -------------------------------------------------------------------------------------


def save_adapter(decoder: Decoder, config: LoraConfig, folder: Path, base: str) -> None:
    """The decoder's adapters, which `config` attached. base: what the base is called.

    A reward model's head is not in its base, so it goes along (PEFT's modules_to_save).
    """
    folder.mkdir(parents=True, exist_ok=True)
    reward = isinstance(decoder, RewardModel)
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters(decoder).items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = adapter.a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = adapter.b
    if isinstance(decoder, RewardModel):
        tensors[f"{_PREFIX}score.weight"] = decoder.score.weight
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, str(folder / WEIGHTS), metadata={"format": "pt"})
    write_json(folder / BASE, {"weights_digest": _base_digest(decoder)})
    family = decoder.config.family
    full = names_of(decoder, family, config.targets)
    alpha = config.full_alpha
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS" if reward else "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": config.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "lora_dropout": config.dropout,
            "use_rslora": config.rslora,
            "target_modules": list(config.targets) or sorted({n.rpartition(".")[2] for n in full}),
            "fan_in_fan_out": family == "gpt2",
            "bias": "none",
            "modules_to_save": ["score"] if reward else None,
            "inference_mode": True,
        },
    )


def _base_digest(decoder: Decoder) -> str:
    return weights_digest({n: t for n, t in base_tensors(decoder).items() if n != "score.weight"})


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterFile:
    """An opened adapter: map → (A, B) in float32, its scale, and the base's digest if it says."""

    maps: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]
    base_digest: str


def read_adapter(folder: Path) -> AdapterFile:
    """Raises NotFound, InvalidArgument (what this decoder does not compute) or DataLoss (cut off,
    not a number), naming file and field or tensor."""
    where = folder / CONFIG
    config = read_json(where)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InvalidArgument(
            f"{where}: peft_type is {kind!r}; only 'LORA' can be opened. Merge the adapter in PEFT "
            "(merge_and_unload) and import the whole model",
            field="peft_type",
        )
    for name, allowed in _ONLY.items():
        if config.get(name) not in allowed:
            raise InvalidArgument(
                f"{where}: {name} is {config[name]!r}, only {allowed[0]!r} can be opened; merge "
                "the adapter in PEFT (merge_and_unload) and import the whole model",
                field=name,
            )
    known = {*_READ, *_INERT.split(), *_ONLY}
    for name, value in config.items():
        if name not in known and value not in (None, False, [], {}):
            raise InvalidArgument(
                f"{where}: {shown(name)} (here {shown(value)}) is unknown and might change what "
                "the adapter computes; remove it if it does not, else merge the adapter in PEFT "
                "(merge_and_unload) and import the whole model",
                field=name[:80],
            )
    flag(config.get("use_rslora") or False, where=str(where), key="use_rslora")
    if config.get("init_lora_weights", True) not in _STARTS:
        raise InvalidArgument(
            f"{where}: init_lora_weights {config['init_lora_weights']!r} changes the base; convert "
            "the adapter in PEFT (save_pretrained with path_initial_model_for_weight_conversion)",
            field="init_lora_weights",
        )
    maps = _read_tensors(folder / WEIGHTS)
    scales = {name: _scale(config, name, a_ri.shape[0], where) for name, (a_ri, _) in maps.items()}
    base = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    return AdapterFile(maps, scales, str(base.get("weights_digest", "")))


def _scale(config: Mapping[str, Any], name: str, rank: int, where: Path) -> float:
    """alpha over the map's rank, or over its root; patterns of names come first."""
    wanted = _by_pattern(config, "rank_pattern", name, where, "r")
    if isinstance(wanted, bool) or wanted != rank:
        raise InvalidArgument(
            f"{where}: r is {shown(wanted)} for {name!r}, its tensors have rank {rank}", field="r"
        )
    alpha = _by_pattern(config, "alpha_pattern", name, where, "lora_alpha")
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not 0 < alpha <= MAX_ALPHA:
        raise InvalidArgument(
            f"{where}: lora_alpha is {shown(alpha)} for {name!r}, must be a number above 0 and at "
            f"most {MAX_ALPHA:g}",
            field="lora_alpha",
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(
    config: Mapping[str, Any], field: str, name: str, where: Path, otherwise: str
) -> Any:
    """PEFT's rule: a pattern is a regular expression for the end of a map's name; the value of
    the key `otherwise` holds for all others.

    Only names are taken: an expression from a stranger could be made to run forever.
    """
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise InvalidArgument(f"{where}: {field} must be an object", field=field)
    for pattern, value in patterns.items():
        plain = str(pattern).replace("\\.", ".").removeprefix("^").removesuffix("$")
        if not re.fullmatch(r"[A-Za-z0-9_.]+", plain):
            raise InvalidArgument(
                f"{where}: {field} has {str(pattern)[:80]!r}; only plain names of maps are taken",
                field=field,
            )
        if name == plain or name.endswith(f".{plain}"):
            return value
    return config.get(otherwise)


def _read_tensors(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    if not path.is_file():
        bins = path.with_suffix(".bin").is_file()
        raise NotFound(
            f"{path}: no such file"
            + ("; the adapter is a pickle, save it again with safe_serialization" if bins else "")
        )
    sides: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            for stored in file.keys():  # noqa: SIM118 - a file is no mapping
                match = _TENSOR.fullmatch(stored)
                if match is None:
                    raise InvalidArgument(
                        f"{path}: tensor {stored!r} is none of LoRA on linear maps, "
                        f"which are {_PREFIX}<map>.lora_A.weight and .lora_B.weight"
                    )
                tensor: Tensor = file.get_tensor(stored)
                check_finite(tensor, f"{path}: tensor {stored!r}")
                sides.setdefault(match["map"], {})[match["side"]] = tensor.float()
    except (SafetensorError, OSError, ValueError) as error:
        raise DataLoss(f"{path}: damaged or cut off ({error})", reason="DAMAGED_FILE") from error
    if not sides:
        raise InvalidArgument(f"{path}: holds no tensor")
    return {name: _both(path, name, found) for name, found in sorted(sides.items())}


def _both(path: Path, name: str, found: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    for side in ("A", "B"):
        if side not in found:
            raise InvalidArgument(f"{path}: tensor {_PREFIX}{name}.lora_{side}.weight is missing")
    a_ri, b_or = found["A"], found["B"]
    if a_ri.dim() != 2 or b_or.dim() != 2 or a_ri.shape[0] != b_or.shape[1]:
        raise InvalidArgument(
            f"{path}: {name}: A is {list(a_ri.shape)} and B {list(b_or.shape)}, must be [r, in] "
            "and [out, r]"
        )
    if not 1 <= a_ri.shape[0] <= MAX_RANK:
        raise InvalidArgument(f"{path}: {name}: rank {a_ri.shape[0]}, must be 1 to {MAX_RANK}")
    return a_ri, b_or


def put_on(decoder: Decoder, adapter: AdapterFile, where: str) -> None:
    """Attach an opened adapter to its base.

    Raises InvalidArgument where the two do not fit: another model's digest, a map that the decoder
    has not, or one of another shape. The decoder is as it was then.
    """
    if adapter.base_digest and adapter.base_digest != (mine := _base_digest(decoder)):
        raise InvalidArgument(
            f"{where}: was trained on weights {adapter.base_digest}, the base has {mine}",
            reason="OTHER_BASE",
        )
    linears = {n: m for n, m in decoder.named_modules() if isinstance(m, Linear)}
    for name, (a_ri, b_or) in adapter.maps.items():
        if name not in linears:
            raise InvalidArgument(
                f"{where}: adapts {name!r}, which is no linear map of the base; is it another "
                "model's adapter?",
                reason="OTHER_BASE",
            )
        shape = list(linears[name].weight.shape)
        if [b_or.shape[0], a_ri.shape[1]] != shape:
            raise InvalidArgument(
                f"{where}: {name!r} is for a map of {[b_or.shape[0], a_ri.shape[1]]}, the base has "
                f"{shape}; it is another model's adapter",
                reason="OTHER_BASE",
            )
    with torch.no_grad():
        for name, (a_ri, b_or) in adapter.maps.items():
            made = attach_one(decoder, name, a_ri.shape[0], adapter.scales[name])
            made.a.copy_(a_ri)
            made.b.copy_(b_or)
