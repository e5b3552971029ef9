"""Rotary positions in a Hugging Face `config.json`, read and written.

transformers 5 writes rope_parameters; before it, rope_theta and rope_scaling. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.models.limits import from_json, real, shown, whole
from plinth.models.rope_scaling import RopeScaling, check_order
from plinth.shared.errors import InvalidArgument

_WHERE = "config.json"
# Keys of a scaled rope by its type, beside rope_theta and the type itself.
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def rope_of(config: Mapping[str, Any], context: int) -> tuple[float, RopeScaling | None]:
    """theta and the scaling. transformers 5 writes rope_parameters; before it, rope_theta and
    rope_scaling."""
    name, rope = "rope_parameters", config.get("rope_parameters")
    if config.get("rope_scaling"):
        if rope and rope != config["rope_scaling"]:
            raise InvalidArgument(
                f"{_WHERE}: rope_scaling is {shown(config['rope_scaling'])} and rope_parameters "
                f"{shown(rope)}; one of them must go",
                field="rope_scaling",
            )
        name, rope = "rope_scaling", config["rope_scaling"]
    if not isinstance(rope, dict | None):
        raise InvalidArgument(f"{_WHERE}: {name} is {shown(rope)}, must be an object", field=name)
    rope = rope or {}
    if "rope_theta" in config and "rope_theta" in rope:
        agree(config, "rope_theta", f"{name}.rope_theta", rope["rope_theta"])
    theta_key = f"{name}.rope_theta" if "rope_theta" in rope else "rope_theta"
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return (
        real(theta, "rope_theta", where=_WHERE, key=theta_key),
        _rope_scaling(rope, name, config.get("original_max_position_embeddings"), context),
    )


def _rope_scaling(
    rope: Mapping[str, Any], name: str, original: Any, context: int
) -> RopeScaling | None:
    """original: the key of that name beside `rope`, which transformers prefers to the one in it;
    without either it takes the context."""
    kind = _rope_type(rope, name)
    _check_rope_keys(rope, name, kind)
    if kind == "default":
        return None
    numbers = {
        key: real(rope.get(key), key, where=_WHERE, key=f"{name}.{key}")
        for key in _ROPE_KEYS[kind]
        if key in ("factor", "low_freq_factor", "high_freq_factor")
    }
    if kind == "linear":
        return RopeScaling("linear", numbers["factor"])
    check_order(
        numbers["low_freq_factor"], numbers["high_freq_factor"], where=_WHERE, prefix=f"{name}."
    )
    key = "original_max_position_embeddings"
    outer = original is not None
    length = original if outer else rope.get(key, context)
    return RopeScaling(
        "llama3",
        numbers["factor"],
        numbers["low_freq_factor"],
        numbers["high_freq_factor"],
        original_context=whole(
            from_json(length),
            "original_context",
            where=_WHERE,
            key=key if outer else f"{name}.{key}",
        ),
    )


def _rope_type(rope: Mapping[str, Any], name: str) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise InvalidArgument(
            f"{_WHERE}: {name}.rope_type {shown(kind)} is unknown; 'default', 'linear' and "
            "'llama3' work",
            field=name,
        )
    if rope.get("type", kind) != kind:
        raise InvalidArgument(
            f"{_WHERE}: {name}.type is {shown(rope['type'])} and {name}.rope_type {kind!r}; they "
            "mean the same and must agree",
            field=name,
        )
    return kind


def _check_rope_keys(rope: Mapping[str, Any], name: str, kind: str) -> None:
    for key, value in rope.items():
        if key in ("rope_type", "type", "rope_theta", *_ROPE_KEYS[kind]) or value is None:
            continue
        if key == "partial_rotary_factor" and value == 1:
            continue
        raise InvalidArgument(
            f"{_WHERE}: {name}.{shown(key)[1:-1]} (here {shown(value)}) has no meaning with "
            f"rope_type {kind!r}, which takes {', '.join(_ROPE_KEYS[kind]) or 'rope_theta alone'}",
            field=name,
        )


def agree(config: Mapping[str, Any], key: str, other: str, value: Any) -> None:
    """Raise InvalidArgument unless `config[key]` is `value`, which is what `other` says."""
    if config[key] != value:
        raise InvalidArgument(
            f"{_WHERE}: {key} is {shown(config[key])} and {other} {shown(value)}; they mean the "
            "same and must agree",
            field=key,
        )


def written_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The value of `rope_parameters`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
    return rope
