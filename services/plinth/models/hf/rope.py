"""Rotary positions in a Hugging Face `config.json`, read and written.

transformers 5 writes rope_parameters; before it, rope_theta and rope_scaling. Where a file may say
one thing twice, both must agree. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from plinth.models.hf.file import WHERE, ConfigFile
from plinth.models.limits import flag, from_json, real, shown, whole
from plinth.models.rope import Rope, RopeScaling, check_factors, check_order
from plinth.shared.errors import InvalidArgument

_ORIGINAL = "original_max_position_embeddings"
# Keys of a scaled rope by its type, beside rope_theta, the type itself and the share that turns:
# those that must be there, and others.
_KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        (),
        (
            *("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "truncate"),
            *("mscale", "mscale_all_dim"),
        ),
    ),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
    "longrope": (("short_factor", "long_factor"), ("factor", _ORIGINAL, "attention_factor")),
}


# Inert: what the first code of YaRN asked for its dynamic form alone.
_INERT = {"yarn": ("finetuned",)}


def rope_of(
    file: ConfigFile,
    context: int,
    head_dim: int,
    *,
    theta: float = 10000.0,
    theta_key: str = "rope_theta",
    share: float | None = None,
    share_key: str = "partial_rotary_factor",
) -> Rope:
    """The one rope of a file whose layers all turn alike.

    theta, share: what the family takes where the file is silent; under theirs keys beside
    rope_parameters. share: None for a family whose heads always turn whole.
    """
    name, rope = "rope_parameters", file.get("rope_parameters")
    older = file.get("rope_scaling")
    if older:
        if rope and rope != older:
            raise InvalidArgument(
                f"{WHERE}: rope_scaling is {shown(older)} and rope_parameters {shown(rope)}; one "
                "of them must go",
                field="rope_scaling",
            )
        name, rope = "rope_scaling", older
    rope = an_object(rope, name)
    outer = {"rope_theta": theta_key, "partial_rotary_factor": share_key}
    for inner, key in outer.items():
        if file.get(key) is not None and rope.get(inner) is not None:
            agree(file.content, key, f"{name}.{inner}", rope[inner])
    found = {
        "rope_theta": file.get(theta_key, theta),
        "partial_rotary_factor": file.get(share_key),
        **{key: value for key, value in rope.items() if value is not None},
    }
    theta_at = f"{name}.rope_theta" if "rope_theta" in rope else theta_key
    file.keys |= {"rope_theta": theta_at, "factor": f"{name}.factor"}
    return read_rope(
        found,
        name,
        head_dim=head_dim,
        context=context,
        share=share,
        original=file.get(_ORIGINAL),
        theta_key=theta_at,
    )


def an_object(rope: Any, name: str) -> dict[str, Any]:
    """What stands at a key for rope parameters; empty where it is missing or null."""
    if not isinstance(rope, dict | None):
        raise InvalidArgument(f"{WHERE}: {name} is {shown(rope)}, must be an object", field=name)
    return rope or {}


def read_rope(
    rope: Mapping[str, Any],
    name: str,
    *,
    head_dim: int,
    context: int,
    share: float | None = None,
    original: Any = None,
    theta_key: str = "",
) -> Rope:
    """One object of rope parameters. share: see `rope_of`. original: the key of that name beside
    it, which transformers prefers to the one in it; without either it takes the context."""
    kind = _rope_type(rope, name)
    _check_keys(rope, name, kind)
    theta_key = theta_key or f"{name}.rope_theta"
    theta = real(rope.get("rope_theta", 10000.0), "rope_theta", where=WHERE, key=theta_key)
    key = f"{name}.partial_rotary_factor"
    part = rope.get("partial_rotary_factor")
    part = (share or 1.0) if part is None else real(part, "share", where=WHERE, key=key)
    if share is None and part != 1.0:
        raise InvalidArgument(
            f"{WHERE}: {key} is {part:g}, must be 1: heads of this model_type turn whole", field=key
        )
    features = int(head_dim * part)
    if part != 1.0 and (features < 2 or features % 2):
        raise InvalidArgument(
            f"{WHERE}: {key} is {part:g}: {features} of a head's {head_dim} features would turn, "
            "which do so in pairs",
            field=key,
        )
    scaling = _scaling(rope, name, kind, original, context, features // 2)
    try:
        return Rope(theta, 0 if features == head_dim else features, scaling)
    except InvalidArgument as error:
        raise InvalidArgument(f"{WHERE}: {theta_key}: {error.message}", field=theta_key) from error


def _scaling(
    rope: Mapping[str, Any], name: str, kind: str, original: Any, context: int, pairs: int
) -> RopeScaling | None:
    if kind == "default":
        return None

    def number(key: str, default: float | None = None) -> float:
        value = rope.get(key)
        if value is None and default is not None:
            return default
        return real(value, key, where=WHERE, key=f"{name}.{key}")

    length = original if original is not None else rope.get(_ORIGINAL, context)
    at = _ORIGINAL if original is not None else f"{name}.{_ORIGINAL}"
    first = whole(from_json(length), "original_context", where=WHERE, key=at)
    if kind == "linear":
        return RopeScaling("linear", number("factor"), original_context=context)
    if kind == "dynamic":
        return RopeScaling("dynamic", number("factor"), original_context=context)
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        check_order(low, high, where=WHERE, prefix=f"{name}.")
        return RopeScaling("llama3", number("factor"), low, high, first)
    told = (rope.get("factor"), rope.get(_ORIGINAL), original)
    if kind == "yarn" and told == (None, None, None):
        raise InvalidArgument(
            f"{WHERE}: {name}.factor is missing; rope_type 'yarn' needs it, or {_ORIGINAL}",
            field=name,
        )
    factor = number("factor", max(1.0, context / first))
    if kind == "yarn":
        fast, slow = number("beta_fast", 32.0), number("beta_slow", 1.0)
        check_order(slow, fast, where=WHERE, prefix=f"{name}.", names=("beta_slow", "beta_fast"))
        truncate = rope.get("truncate", True)
        return RopeScaling(
            "yarn",
            factor,
            original_context=first,
            attention_factor=number("attention_factor", _yarn_attention(rope, name, factor)),
            beta_fast=fast,
            beta_slow=slow,
            truncate=flag(truncate, where=WHERE, key=f"{name}.truncate"),
        )
    usual = 1.0 if factor <= 1 or first < 2 else math.sqrt(1 + math.log(factor) / math.log(first))
    return RopeScaling(
        "longrope",
        factor,
        original_context=first,
        attention_factor=number("attention_factor", usual),
        short_factors=_factors(rope, "short_factor", name, pairs),
        long_factors=_factors(rope, "long_factor", name, pairs),
    )


def _yarn_attention(rope: Mapping[str, Any], name: str, factor: float) -> float:
    """Peng et al. 2023, equation 22, with DeepSeek's two multipliers where both are there."""

    def scale(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    for key, value in (("mscale", over), ("mscale_all_dim", under)):
        if value is not None:
            real(value, "mscale", where=WHERE, key=f"{name}.{key}")
    return scale(over) / scale(under) if over and under else scale(1.0)


def _factors(rope: Mapping[str, Any], key: str, name: str, pairs: int) -> tuple[float, ...]:
    given = rope.get(key)
    at = f"{name}.{key}"
    factors = check_factors(tuple(given) if isinstance(given, list) else given, at, where=WHERE)
    if len(factors) != pairs:
        raise InvalidArgument(
            f"{WHERE}: {at} has {len(factors)} numbers, must have {pairs}: one for each pair of "
            "features that turns",
            field=at,
        )
    return factors


def _rope_type(rope: Mapping[str, Any], name: str) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    # transformers' own older names: "su" is Phi-3's LongRoPE.
    kind = {"su": "longrope"}.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _KEYS:
        raise InvalidArgument(
            f"{WHERE}: {name}.rope_type {shown(kind)} is unknown; "
            f"{', '.join(map(repr, _KEYS))} work",
            field=name,
        )
    if rope.get("type", kind) not in (kind, "su"):
        raise InvalidArgument(
            f"{WHERE}: {name}.type is {shown(rope['type'])} and {name}.rope_type {kind!r}; they "
            "mean the same and must agree",
            field=name,
        )
    return kind


def _check_keys(rope: Mapping[str, Any], name: str, kind: str) -> None:
    wanted, others = _KEYS[kind]
    for key, value in rope.items():
        known = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *wanted, *others)
        if key in (*known, *_INERT.get(kind, ())) or value is None:
            continue
        takes = ", ".join((*wanted, *others)) or "rope_theta alone"
        raise InvalidArgument(
            f"{WHERE}: {name}.{shown(key)[1:-1]} (here {shown(value)}) has no meaning with "
            f"rope_type {kind!r}, which takes {takes}",
            field=name,
        )
    for key in wanted:
        if rope.get(key) is None:
            raise InvalidArgument(
                f"{WHERE}: {name}.{key} is missing; rope_type {kind!r} needs it", field=name
            )


def agree(config: Mapping[str, Any], key: str, other: str, value: Any) -> None:
    """Raise InvalidArgument unless `config[key]` is `value`, which is what `other` says."""
    if config[key] != value:
        raise InvalidArgument(
            f"{WHERE}: {key} is {shown(config[key])} and {other} {shown(value)}; they mean the "
            "same and must agree",
            field=key,
        )


def written_rope(rope: Rope, head_dim: int, *, share: bool = False) -> dict[str, Any]:
    """The value of `rope_parameters`. share: with the share of a head that turns, though it is
    all of it."""
    written: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.features or share:
        written["partial_rotary_factor"] = _share(rope.features or head_dim, head_dim)
    scaling = rope.scaling
    if scaling is None:
        return written
    written |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind not in ("linear", "dynamic"):
        written[_ORIGINAL] = scaling.original_context
    if scaling.kind == "llama3":
        written["low_freq_factor"] = scaling.low_freq_factor
        written["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind in ("yarn", "longrope"):
        written["attention_factor"] = scaling.attention_factor
    if scaling.kind == "yarn":
        written |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        written["truncate"] = scaling.truncate
    if scaling.kind == "longrope":
        written["short_factor"] = list(scaling.short_factors)
        written["long_factor"] = list(scaling.long_factors)
    return written


def _share(features: int, head_dim: int) -> float:
    """Of a head; a reader who rounds its product with the head's width down gets `features`."""
    share = features / head_dim
    return share if int(head_dim * share) == features else math.nextafter(share, 1.0)
