"""What a decoder's configuration must hold to: each number in its range, parts that fit together.

Each check raises InvalidArgument that names the field, its value and what would be right. Needs no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from plinth.models.activations import ACTIVATIONS
from plinth.models.limits import (
    MAX_EXPERTS,
    MAX_PARAMETERS,
    MAX_ROTARY,
    flag,
    real,
    shown,
    token_id,
    whole,
)
from plinth.models.parts import Biases, Experts, LayerKind, NormKind, NormPlaces, QkNorm
from plinth.models.rope import Rope, RopeScaling
from plinth.shared.errors import InvalidArgument

if TYPE_CHECKING:
    from plinth.models.config import ModelConfig

_WHERE = "model config"
_SIZES = (
    "vocab_size",
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "intermediate",
    "context",
)
_FLAGS = ("norm_offset", "parallel", "learned_positions", "gated", "tie_embeddings")
# 0: there is none.
_OPTIONAL = ("attention_scale", "attention_cap", "logit_cap")


def check(config: ModelConfig) -> None:
    """Raise InvalidArgument naming the first field that cannot be right."""
    for field in _SIZES:
        whole(getattr(config, field), field, where=_WHERE)
    for field in ("norm_eps", "embedding_scale", "residual_scale", "logit_scale"):
        real(getattr(config, field), field, where=_WHERE)
    for field in _OPTIONAL:
        value = getattr(config, field)
        if isinstance(value, bool) or value != 0:
            real(value, field, where=_WHERE)
    for field in _FLAGS:
        flag(getattr(config, field), where=_WHERE, key=field)
    _check_choices(config)
    _check_ids(config)
    _check_heads(config)
    _check_layers(config)
    _check_experts(config)
    _check_memory(config)


def _refuse(field: str, value: Any, must: str) -> InvalidArgument:
    return InvalidArgument(f"{_WHERE}: {field} is {shown(value)}, must be {must}", field=field)


def _check_choices(config: ModelConfig) -> None:
    choices = {
        "norm": get_args(NormKind),
        "norms": get_args(NormPlaces),
        "qk_norm": get_args(QkNorm),
        "activation": tuple(ACTIVATIONS),
    }
    for field, allowed in choices.items():
        value = getattr(config, field)
        if not isinstance(value, str) or value not in allowed:
            raise _refuse(field, value, " or ".join(map(repr, allowed)))
    if not isinstance(config.family, str) or not config.family:
        raise _refuse("family", config.family, "the name of a family")
    if not isinstance(config.biases, Biases):
        raise _refuse("biases", config.biases, "Biases")
    for field, value in vars(config.biases).items():
        flag(value, where=_WHERE, key=f"biases.{field}")
    if config.parallel and config.norms != "before":
        raise _refuse("norms", config.norms, "'before' where attention and MLP are parallel")
    if config.parallel and config.residual_scale != 1.0:
        raise _refuse("residual_scale", config.residual_scale, "1 where they are parallel")


def _check_ids(config: ModelConfig) -> None:
    if not isinstance(config.eos_ids, tuple):
        raise _refuse("eos_ids", config.eos_ids, "a tuple of tokens' ids")
    named = [("bos_id", config.bos_id), ("pad_id", config.pad_id)]
    named += [("eos_ids", value) for value in config.eos_ids]
    for field, value in named:
        if value is None and field != "eos_ids":
            continue
        if not 0 <= token_id(value, where=_WHERE, key=field) < config.vocab_size:
            raise InvalidArgument(
                f"{_WHERE}: {field} {shown(value)} is outside the vocabulary, vocab_size "
                f"is {config.vocab_size}",
                field=field,
            )


def _check_heads(config: ModelConfig) -> None:
    if config.heads % config.kv_heads:
        raise InvalidArgument(
            f"{_WHERE}: {config.heads} heads cannot share kv_heads {config.kv_heads} evenly",
            field="kv_heads",
        )
    if not isinstance(config.ropes, tuple) or not all(isinstance(r, Rope) for r in config.ropes):
        raise _refuse("ropes", config.ropes, "a tuple of Rope")
    for rope in config.ropes:
        features = rope.features or config.head_dim
        if features % 2 or features > config.head_dim:
            raise InvalidArgument(
                f"{_WHERE}: rotary positions need an even head_dim and no more features than it "
                f"has, not {features} of {config.head_dim}",
                field="head_dim",
            )
        scaling = rope.scaling
        if scaling is not None and scaling.by_length:
            _check_by_length(config, scaling)
        for field in ("short_factors", "long_factors"):
            given = () if scaling is None else getattr(scaling, field)
            if given and len(given) != features // 2:
                raise _refuse(field, given, f"{features // 2} numbers, one for each pair")


def _check_by_length(config: ModelConfig, scaling: RopeScaling) -> None:
    """One length says of all ropes by which rows of their tables a sequence turns."""
    if scaling.original_context != config.long_after:
        raise _refuse(
            "original_context",
            scaling.original_context,
            f"{config.long_after} as in another rope that goes by length",
        )
    if config.learned_positions:
        raise _refuse("learned_positions", True, "False with a rope that goes by length")


def _check_layers(config: ModelConfig) -> None:
    kinds = config.layer_kinds
    if not isinstance(kinds, tuple) or not all(isinstance(kind, LayerKind) for kind in kinds):
        raise _refuse("layer_kinds", kinds, "a tuple of LayerKind")
    if kinds and len(kinds) != config.layers:
        raise _refuse("layer_kinds", kinds, f"{config.layers} of them, one for each layer")
    for number, kind in enumerate(kinds):
        where = f"layer_kinds[{number}]"
        if kind.window != 0 or isinstance(kind.window, bool):
            whole(kind.window, "window", where=_WHERE, key=f"{where}.window")
        rope = kind.rope
        if rope is not None and (isinstance(rope, bool) or rope not in range(len(config.ropes))):
            raise _refuse(f"{where}.rope", rope, f"one of the {len(config.ropes)} ropes, or None")
        flag(kind.experts, where=_WHERE, key=f"{where}.experts")
        if kind.experts and config.experts is None:
            raise _refuse(f"{where}.experts", True, "False where the model has no experts")


def _check_experts(config: ModelConfig) -> None:
    experts = config.experts
    if experts is None:
        return
    if not isinstance(experts, Experts):
        raise _refuse("experts", experts, "Experts or None")
    for field in ("count", "chosen", "width"):
        whole(getattr(experts, field), f"experts.{field}", where=_WHERE)
    for field in ("normalised", "balanced"):
        flag(getattr(experts, field), where=_WHERE, key=f"experts.{field}")
    real(experts.balance, "experts.balance", where=_WHERE)
    if experts.chosen > experts.count:
        raise _refuse("experts.chosen", experts.chosen, f"no more than the {experts.count} experts")
    if not config.gated:
        raise _refuse("gated", config.gated, "True where there are experts")
    if config.biases.mlp:
        raise _refuse("biases.mlp", config.biases.mlp, "False where there are experts")
    if config.parallel:
        raise _refuse("parallel", config.parallel, "False where there are experts")
    if config.residual_scale != 1.0:
        raise _refuse("residual_scale", config.residual_scale, "1 where there are experts")


def _check_memory(config: ModelConfig) -> None:
    if config.parameters > MAX_PARAMETERS:
        sizes = ", ".join(f"{field} {getattr(config, field)}" for field in _SIZES)
        raise InvalidArgument(
            f"{_WHERE}: {sizes} ask for {config.parameters:,} weights, more than "
            f"{MAX_PARAMETERS:,}",
            field="layers",
        )
    sparse = sum(kind.experts for kind in config.kinds)
    if config.experts is not None and sparse * config.experts.count > MAX_EXPERTS:
        raise InvalidArgument(
            f"{_WHERE}: experts.count is {config.experts.count} in each of {sparse} layers, more "
            f"than {MAX_EXPERTS:,} experts in all",
            field="experts.count",
        )
    tables = len(config.ropes) * (2 if config.long_after else 1)
    numbers = tables * config.context * config.head_dim
    if numbers > MAX_ROTARY:
        raise InvalidArgument(
            f"{_WHERE}: context {config.context} with head_dim {config.head_dim} asks for rotary "
            f"tables of {numbers:,} numbers, more than {MAX_ROTARY:,}",
            field="context",
        )
