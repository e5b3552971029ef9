"""What each number of a configuration may be, and the checks that refuse the rest.

A configuration comes from a checkpoint, so from a stranger. The ranges are wide enough for every
model that fits a machine of ours and narrow enough that whatever passes can be computed in float32
with finite results and cannot ask for an absurd allocation. Each check returns the value or raises
InvalidArgument, which names the key, its value and what would be right. Needs no torch.
"""

from __future__ import annotations

from typing import Any

from plinth.shared.errors import InvalidArgument

# Field of ModelConfig (or of a part of it) → smallest and largest value.
WHOLE = {
    "vocab_size": (1, 1_000_000),
    "layers": (1, 256),
    "hidden": (1, 32_768),
    "heads": (1, 32_768),
    "kv_heads": (1, 32_768),
    "head_dim": (1, 1024),
    "intermediate": (1, 262_144),
    "context": (1, 1_048_576),
    "original_context": (1, 1_048_576),
    "window": (1, 1_048_576),
    "experts.count": (1, 4096),
    "experts.chosen": (1, 4096),
    "experts.width": (1, 262_144),
    "layer_number": (0, 1_000_000),
    "layers_apart": (1, 1_000_000),  # each so-manieth layer
    "rope_features": (2, 1024),
}
REAL = {
    # Below 1e-12 float32 loses it beside any mean square, and a row of zeros gives 0/0.
    "norm_eps": (1e-12, 1.0),
    # The largest in use are near 1e9; powers of it must stay finite in float32.
    "rope_theta": (1.0, 1e15),
    "factor": (1.0, 1e6),
    "low_freq_factor": (1e-6, 1e6),
    "high_freq_factor": (1e-6, 1e6),
    "factor_of_a_pair": (1e-3, 1e6),
    "attention_factor": (1e-3, 1e3),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "mscale": (0.0, 1e3),
    "share": (1e-3, 1.0),
    "query_scalar": (1e-3, 1e6),
    "attention_scale": (1e-6, 1e3),
    "attention_cap": (1e-3, 1e6),
    "logit_cap": (1e-3, 1e6),
    "embedding_scale": (1e-6, 1e6),
    "residual_scale": (1e-6, 1e6),
    "logit_divisor": (1e-6, 1e6),
    "logit_scale": (1e-6, 1e6),
    "experts.balance": (0.0, 1e3),
}
# Four terabytes in float32. No single field of a plausible model goes so far; products do.
MAX_PARAMETERS = 2**40
# Of all layers together. Each is three maps of its own: what they weigh besides their numbers is a
# few kilobytes.
MAX_EXPERTS = 2**16
# context × head_dim: 1 GiB of rotary tables.
MAX_ROTARY = 2**28


def shown(value: Any) -> str:
    """`repr`, cut off where a message would drown in it."""
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "an int"
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole(value: Any, field: str, *, where: str, key: str = "") -> int:
    """An int within `WHOLE[field]`. key: what the source calls the field."""
    low, high = WHOLE[field]
    name = key or field
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgument(
            f"{where}: {name} is {shown(value)}, must be a whole number from {low} to {high:,}",
            field=name,
        )
    return value


def real(value: Any, field: str, *, where: str, key: str = "") -> float:
    """A number within `REAL[field]`; NaN is in none."""
    low, high = REAL[field]
    name = key or field
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidArgument(
            f"{where}: {name} is {shown(value)}, must be a number from {low:g} to {high:g}",
            field=name,
        )
    return float(value)


def flag(value: Any, *, where: str, key: str) -> bool:
    """True or False themselves: "false" is a string and would count as true."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{where}: {key} is {shown(value)}, must be true or false", field=key)
    return value


def token_id(value: Any, *, where: str, key: str) -> int:
    """An int, of whatever size: who asks decides what an id outside the vocabulary means."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(
            f"{where}: {key} is {shown(value)}, must be a token's id, a whole number", field=key
        )
    return value


def from_json(value: Any) -> Any:
    """The value, an int where it is a float without a fraction: JSON has one kind of number, and
    some writers give 8192.0 for 8192."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
