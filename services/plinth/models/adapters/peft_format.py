"""Adapters in the format of Hugging Face's PEFT: written so that `PeftModel.from_pretrained` opens
them on their base, and read with every setting that this decoder would not compute refused.

    adapter_config.json         peft_type LORA, r, lora_alpha, target_modules, …
    adapter_model.safetensors   base_model.model.<map>.lora_A.weight [r, in]
                                base_model.model.<map>.lora_B.weight [out, r]

    (of PEFT's own, where the output map is adapted, lm_head.base_layer.weight: the base's map)

    base.json                   ours alone, see `adapters.base`: which base, and what ends an
                                answer; PEFT passes it by

(Not in the safetensors' metadata, whose keys come in any order: equal adapters shall be equal
files.) A reward model's head is not in its base, so it goes along: PEFT's modules_to_save.
Layout: PEFT keeps A and B of GPT-2's Conv1D maps as it keeps all others; only the base is
transposed on disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plinth.models.adapters.base import NamedBase, read_base, read_stop_ids, write_base
from plinth.models.adapters.lora import MAX_RANK, LoraConfig, adapters, attach_one, target_names
from plinth.models.adapters.peft_settings import check_settings, scale_of
from plinth.models.decoder import Decoder
from plinth.models.families import names_of
from plinth.models.hf.folder import check_finite, is_turned, read_json
from plinth.models.layers import Linear
from plinth.models.reward import RewardModel
from plinth.models.weights import write_json
from plinth.shared.errors import DataLoss, InvalidArgument, NotFound

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HEAD = f"{_PREFIX}score.weight"
# What the output map is called in a model of transformers' in memory, whatever its file says.
_OUTPUT = "lm_head"
_BASE_LAYER = re.compile(r"base_model\.model\.(?P<map>.+)\.base_layer\.weight")
_TENSOR = re.compile(r"base_model\.model\.(?P<map>.+)\.lora_(?P<side>[AB])\.weight")

# -- writing -------------------------------------------------------------------------------------


def save_adapter(
    decoder: Decoder,
    config: LoraConfig,
    folder: Path,
    base: str,
    stop_ids: Sequence[int] = (),
) -> None:
    """The decoder's adapters, which `config` attached. base: what the base is called. stop_ids:
    what ends an answer of the data, the end of a turn first; the decoder's own come behind them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reward = isinstance(decoder, RewardModel)
    tensors: dict[str, Tensor] = {}
    head = names_of(decoder.config.family).head
    for name, adapter in adapters(decoder).items():
        theirs = _OUTPUT if name == head else name
        tensors[f"{_PREFIX}{theirs}.lora_A.weight"] = adapter.a
        tensors[f"{_PREFIX}{theirs}.lora_B.weight"] = adapter.b
    if isinstance(decoder, RewardModel):
        tensors[_HEAD] = decoder.score.weight
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, str(folder / WEIGHTS), metadata={"format": "pt"})
    write_base(folder, decoder, stop_ids)
    family = decoder.config.family
    full = target_names(decoder, family, config.targets)
    targets = list(config.targets) or sorted({n.rpartition(".")[2] for n in full})
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
            "target_modules": [_OUTPUT if target == head else target for target in targets],
            "fan_in_fan_out": any(is_turned(family, f"{name}.weight") for name in full),
            "bias": "none",
            "modules_to_save": ["score"] if reward else None,
            "inference_mode": True,
        },
    )


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterFile:
    """An opened adapter: map → (A, B) in float32, and its scale; what it says of its base; ids
    that end its answers, the end of a turn first; a reward model's head [1, d]; the base's own maps
    that PEFT kept beside, by their names."""

    maps: Mapping[str, tuple[Tensor, Tensor]]
    scales: Mapping[str, float]
    base: NamedBase
    stop_ids: Sequence[int] = ()
    head: Tensor | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)


def read_adapter(folder: Path) -> AdapterFile:
    """Raises NotFound, InvalidArgument (what this decoder does not compute) or DataLoss (cut off,
    not a number), naming file and field or tensor."""
    where = folder / CONFIG
    config = read_json(where)
    rewards = check_settings(config, where)
    maps, head, kept = _read_tensors(folder / WEIGHTS, rewards)
    scales = {
        name: scale_of(config, name, a_ri.shape[0], where) for name, (a_ri, _) in maps.items()
    }
    base = read_base(folder, config, reward=head is not None)
    return AdapterFile(maps, scales, base, read_stop_ids(folder), head, kept)


def _read_tensors(
    path: Path, rewards: bool
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | None, dict[str, Tensor]]:
    if not path.is_file():
        bins = path.with_suffix(".bin").is_file()
        raise NotFound(
            f"{path}: no such file"
            + ("; the adapter is a pickle, save it again with safe_serialization" if bins else "")
        )
    sides: dict[str, dict[str, Tensor]] = {}
    head: Tensor | None = None
    kept: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            for stored in file.keys():  # noqa: SIM118 - a file is no mapping
                match = _TENSOR.fullmatch(stored)
                if rewards and stored == _HEAD:
                    head = file.get_tensor(stored).float()
                    check_finite(head, f"{path}: tensor {stored!r}")
                    continue
                base = _BASE_LAYER.fullmatch(stored)
                if base is not None and base["map"] == _OUTPUT:
                    kept[_OUTPUT] = file.get_tensor(stored)
                    continue
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
    if rewards and (head is None or head.dim() != 2 or head.shape[0] != 1):
        found = "is missing" if head is None else f"is {list(head.shape)}"
        raise InvalidArgument(
            f"{path}: tensor {_HEAD!r} {found}; a reward model has one label: [1, hidden]"
        )
    return {name: _both(path, name, pair) for name, pair in sorted(sides.items())}, head, kept


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


def put_on(decoder: Decoder, adapter: AdapterFile, where: str) -> Decoder:
    """An opened adapter attached to its base; with a head, to the reward model of it. That it is
    its base is `adapters.base.check_base`'s business.

    Raises InvalidArgument where the two do not fit: a map that the decoder has not, or one of
    another shape. The decoder is as it was then.
    """
    linears = {n: m for n, m in decoder.named_modules() if isinstance(m, Linear)}
    head = names_of(decoder.config.family).head
    ours = {name: head if name == _OUTPUT else name for name in adapter.maps}
    for theirs, (a_ri, b_or) in adapter.maps.items():
        name = ours[theirs]
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
    for theirs, tensor in adapter.kept.items():
        name = ours.get(theirs, head)
        own = linears[name].weight if name in linears else None
        if (
            own is None
            or own.shape != tensor.shape
            or not torch.equal(own.to(tensor.dtype), tensor)
        ):
            raise InvalidArgument(
                f"{where}: tensor {_PREFIX}{theirs}.base_layer.weight is not the base's {name!r}: "
                "it was trained too, or another model's; merge the adapter in PEFT "
                "(merge_and_unload) and import the whole model",
                reason="OTHER_BASE",
            )
    target = decoder if adapter.head is None else _with_head(decoder, adapter.head, where)
    with torch.no_grad():
        for name, (a_ri, b_or) in adapter.maps.items():
            made = attach_one(target, ours[name], a_ri.shape[0], adapter.scales[name])
            made.a.copy_(a_ri)
            made.b.copy_(b_or)
    return target


def _with_head(decoder: Decoder, head_1d: Tensor, where: str) -> RewardModel:
    if head_1d.shape[1] != decoder.config.hidden:
        raise InvalidArgument(
            f"{where}: its head is for {head_1d.shape[1]} features, the base has "
            f"{decoder.config.hidden}; it is another model's adapter",
            reason="OTHER_BASE",
        )
    made = RewardModel.of(decoder, seed=0)
    with torch.no_grad():
        made.score.weight.copy_(head_1d)
    return made
