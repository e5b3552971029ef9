"""Rotary positions in a GGUF file, as llama.cpp reads them (src/llama-model.cpp, load_hparams;
src/llama-context.cpp for YaRN's defaults). Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from plinth.models.gguf.file import GgufFile, decimal
from plinth.models.limits import real
from plinth.models.rope import Rope, RopeScaling, check_order
from plinth.shared.errors import InvalidArgument

DIVISORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
# These belong to the rotary positions, not to the decoder's weights.
TENSORS = frozenset({DIVISORS, SHORT, LONG})
_KINDS = ("none", "linear", "yarn", "longrope")


def gguf_rope(file: GgufFile, sizes: Mapping[str, Any], *, partial: bool = False) -> Rope:
    """The rope of layers that see all. partial: the architecture may turn a part of each head."""
    head_dim, context = sizes["head_dim"], sizes["context"]
    name = "rope.dimension_count"
    features = file.size("rope_features", name, head_dim) if partial else head_dim
    if not partial:
        why = "all of a head turns (attention.key_length, or embedding_length over the heads)"
        file.must_be(name, head_dim, why)
    elif features > head_dim or features % 2:
        raise InvalidArgument(
            f"{file.where}: {file.full(name)} is {features}, must be even and at most the head's "
            f"size, {head_dim}",
            field=file.full(name),
        )
    theta = file.real("rope_theta", "rope.freq_base", 10000.0)
    scaling = _scaling(file, features, context, theta)
    return Rope(theta, 0 if features == head_dim else features, scaling)


def _scaling(file: GgufFile, features: int, context: int, theta: float) -> RopeScaling | None:
    """Without a type a factor is linear, an older file calls it rope.scale_linear, and 0 is
    none."""
    kind = file.get("rope.scaling.type", str, "linear")
    if kind not in _KINDS:
        raise InvalidArgument(
            f"{file.where}: {file.full('rope.scaling.type')} {kind!r} is unknown; "
            f"{', '.join(map(repr, _KINDS))} work",
            field=file.full("rope.scaling.type"),
        )
    older = file.get("rope.scale_linear", float, 0.0)
    factor = file.get("rope.scaling.factor", float, older)
    original = file.size("original_context", "rope.scaling.original_context_length", context)
    if kind == "longrope" or not file.shapes.keys().isdisjoint((SHORT, LONG)):
        return _longrope(file, features, context, original)
    stretched = kind != "none" and factor not in (0.0, 1.0)
    if DIVISORS in file.shapes:
        if stretched:
            raise InvalidArgument(
                f"{file.where}: both {file.full('rope.scaling.factor')} ({factor}) and "
                f"tensor {DIVISORS!r} scale the rotary positions; only one of them works"
            )
        return _llama3(file, features, theta)
    if kind == "yarn":
        return _yarn(file, original)
    if not stretched:
        return None
    name = file.full("rope.scaling.factor" if older != factor else "rope.scale_linear")
    factor = decimal(real(factor, "factor", where=file.where, key=name))
    return RopeScaling("linear", factor, original_context=context)


def _yarn(file: GgufFile, original: int) -> RopeScaling:
    factor = file.real("factor", "rope.scaling.factor")
    under = "rope.scaling.yarn_"
    fast = file.real("beta_fast", f"{under}beta_fast", 32.0)
    slow = file.real("beta_slow", f"{under}beta_slow", 1.0)
    names = (f"{under}beta_slow", f"{under}beta_fast")
    check_order(slow, fast, where=file.where, prefix=f"{file.architecture}.", names=names)
    file.must_be(f"{under}ext_factor", 1.0, "YaRN's ramp counts whole")
    usual = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    attention = file.real("attention_factor", f"{under}attn_factor", usual)
    return RopeScaling(
        "yarn",
        factor,
        original_context=original,
        attention_factor=usual if _nearly(attention, usual) else attention,
        beta_fast=fast,
        beta_slow=slow,
    )


def _longrope(file: GgufFile, features: int, context: int, original: int) -> RopeScaling:
    factor = max(1.0, context / original)
    usual = 1.0
    if factor > 1 and original > 1:
        usual = math.sqrt(1 + math.log(factor) / math.log(original))
    attention = file.real("attention_factor", "rope.scaling.attn_factor", 1.0)
    return RopeScaling(
        "longrope",
        factor,
        original_context=original,
        attention_factor=usual if _nearly(attention, usual) else attention,
        short_factors=_factors(file, SHORT, features // 2),
        long_factors=_factors(file, LONG, features // 2),
    )


def _factors(file: GgufFile, name: str, pairs: int) -> tuple[float, ...]:
    found = file.shapes.get(name)
    if found != (pairs,):
        raise InvalidArgument(
            f"{file.where}: tensor {name!r} is {'missing' if found is None else list(found)}; "
            f"LongRoPE needs {pairs} numbers there, one for each pair of features that turns"
        )
    key = f"tensor {name!r}"
    return tuple(
        decimal(real(number, "factor_of_a_pair", where=file.where, key=key))
        for number in file.numbers(name)
    )


def _llama3(file: GgufFile, features: int, theta: float) -> RopeScaling | None:
    """The converter keeps Llama 3.1's rule only as its result, one divisor per frequency; the
    slowest pair tells the factor."""
    right = file.shapes[DIVISORS] == (features // 2,)
    divisors = file.numbers(DIVISORS) if right else []
    if right and all(divisor == 1 for divisor in divisors):
        return None
    rule = RopeScaling("llama3")
    span = rule.high_freq_factor - rule.low_freq_factor
    kept = []  # how much of each frequency stays as it is
    for pair in range(features // 2):
        turns = rule.original_context * theta ** (-2 * pair / features) / (2 * math.pi)
        kept.append(min(1.0, max(0.0, (turns - rule.low_freq_factor) / span)))
    slowed = 1 / divisors[-1] - kept[-1] if right and divisors[-1] else 0.0
    if slowed > 0:
        factor = float(f"{(1 - kept[-1]) / slowed:.6g}")
        real(factor, "factor", where=file.where, key=f"tensor {DIVISORS!r}")
        wanted = [1 / ((1 - one) / factor + one) for one in kept]
        if all(abs(d / w - 1) < 1e-3 for d, w in zip(divisors, wanted, strict=True)):
            return RopeScaling("llama3", factor)
    raise InvalidArgument(f"{file.where}: tensor {DIVISORS!r} is not Llama 3.1's rule")


def _nearly(one: float, other: float) -> bool:
    """Whether a number of the file is the other, rounded to fp32."""
    return abs(one - other) <= 1e-6 * abs(other)
