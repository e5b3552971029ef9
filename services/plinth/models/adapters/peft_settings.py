"""PEFT's settings of an adapter (`adapter_config.json`): each is read, inert, or refused.

One that stands in no list is refused too: a later PEFT's may compute something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plinth.models.adapters.lora import MAX_ALPHA
from plinth.models.limits import flag, shown
from plinth.shared.errors import InvalidArgument

_READ = {
    "modules_to_save",
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
# What a setting may be without changing what is computed.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
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


def check_settings(config: Mapping[str, Any], where: Path) -> bool:
    """Raise InvalidArgument naming the first setting that this decoder would not compute; else
    whether a reward model's head goes along."""
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
    return _has_head(config, where)


def _has_head(config: Mapping[str, Any], where: Path) -> bool:
    """Whether a reward model's head goes along; PEFT calls it score, or classifier in others."""
    saved = config.get("modules_to_save")
    if not saved:
        return False
    rewards = config.get("task_type") == "SEQ_CLS" and isinstance(saved, list)
    if rewards and "score" in saved and all(name in ("score", "classifier") for name in saved):
        return True
    raise InvalidArgument(
        f"{where}: modules_to_save is {shown(saved)}; only a reward model's head, ['score'] with "
        "task_type 'SEQ_CLS', can be opened. Merge the adapter in PEFT (merge_and_unload) and "
        "import the whole model",
        field="modules_to_save",
    )


def scale_of(config: Mapping[str, Any], name: str, rank: int, where: Path) -> float:
    """Of the map `name`: alpha over its rank, or over its root; patterns of names come first.

    rank: of its tensors. Raises InvalidArgument where they and the settings differ.
    """
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
