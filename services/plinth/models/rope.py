"""Rotary positions: which features turn, how fast, and how that is stretched for contexts longer
than those of the training. Needs no torch; `rotary` makes the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from plinth.models.limits import WHOLE, flag, real, shown, whole
from plinth.shared.errors import InvalidArgument

_WHERE = "rope scaling"
Scaling = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
SCALINGS: tuple[str, ...] = get_args(Scaling)


@dataclass(frozen=True)
class RopeScaling:
    """One rule, and its numbers; what a rule does not read keeps its default.

    `linear` (Chen et al. 2023): frequencies over `factor`, for a context of so many times the
    original one. `llama3` (Llama 3.1): by wavelength;
    those longer than original_context / low_freq_factor divided, those shorter than
    original_context / high_freq_factor kept, what lies between interpolated. `yarn` (Peng et al.
    2023): likewise between `beta_slow` and `beta_fast` turns within original_context, with bounds
    made whole where `truncate`; cosines and sines times `attention_factor`. `dynamic` (NTK-aware,
    bloc97 2023): sequences longer than original_context turn by a base that is stretched for the
    whole context. `longrope` (Ding et al. 2024): frequencies over `long_factors` for those, over
    `short_factors` for others; times `attention_factor`, too.

    Raises InvalidArgument for what cannot be computed. Unit of `original_context`: tokens.
    """

    kind: Scaling
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise InvalidArgument(
                f"{_WHERE}: kind is {shown(self.kind)}, use {' or '.join(map(repr, SCALINGS))}",
                field="kind",
            )
        numbers = ("factor", "low_freq_factor", "high_freq_factor", "attention_factor")
        for field in (*numbers, "beta_fast", "beta_slow"):
            real(getattr(self, field), field, where=_WHERE)
        whole(self.original_context, "original_context", where=_WHERE)
        flag(self.truncate, where=_WHERE, key="truncate")
        check_order(self.low_freq_factor, self.high_freq_factor, where=_WHERE)
        check_order(self.beta_slow, self.beta_fast, where=_WHERE, names=("beta_slow", "beta_fast"))
        for field in ("short_factors", "long_factors"):
            check_factors(getattr(self, field), field, where=_WHERE)
        if self.kind == "longrope" and not (self.short_factors and self.long_factors):
            raise InvalidArgument(
                f"{_WHERE}: longrope needs short_factors and long_factors", field="short_factors"
            )

    @property
    def by_length(self) -> bool:
        """Whether sequences longer than `original_context` turn otherwise than shorter ones."""
        return self.kind in ("dynamic", "longrope")


@dataclass(frozen=True)
class Rope:
    """The first `features` of each head turn (0: all), the pair i by theta^(-2i / features)."""

    theta: float = 10000.0
    features: int = 0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        real(self.theta, "rope_theta", where="rope")
        if self.features != 0 or isinstance(self.features, bool):
            whole(self.features, "rope_features", where="rope")
        if not isinstance(self.scaling, RopeScaling | None):
            raise InvalidArgument(
                f"rope: scaling is {shown(self.scaling)}, must be a RopeScaling", field="scaling"
            )
        if self.scaling is not None and self.scaling.kind == "yarn" and self.theta == 1.0:
            raise InvalidArgument(
                "rope: rope_theta is 1, must be above 1 for yarn: no pair would turn slower than "
                "another",
                field="rope_theta",
            )
        if self.features % 2:
            raise InvalidArgument(
                f"rope: features is {shown(self.features)}, must be even: they turn in pairs",
                field="features",
            )

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Rope:
        """As `dataclasses.asdict` gave it, through JSON."""
        scaling = fields.get("scaling")
        if isinstance(scaling, Mapping):
            lists = {
                key: tuple(scaling[key])
                for key in ("short_factors", "long_factors")
                if key in scaling
            }
            scaling = RopeScaling(**{**scaling, **lists})
        return cls(**{**fields, "scaling": scaling})


def stretched(ropes: tuple[Rope, ...], told: int, *, where: str, key: str) -> int:
    """The context of a model whose file says `told`, in tokens.

    By linear and dynamic scaling that is what it was trained with, times the factor (so
    transformers' description of rope_scaling has it, and vLLM); YaRN reaches `original_context`
    times the factor; files of other rules say the whole, as do those of more than one rope
    (Gemma 3).
    key: what the source calls the factor. InvalidArgument for a product that is too large.
    """
    scaling = ropes[0].scaling if len(ropes) == 1 else None
    if scaling is None or scaling.kind not in ("linear", "dynamic", "yarn"):
        return told
    trained, most = scaling.original_context, WHOLE["context"][1]
    context = int(scaling.factor * trained)
    if context > most:
        raise InvalidArgument(
            f"{where}: {key} is {scaling.factor:g}: {trained} tokens times it are more than "
            f"the {most:,} that a context may have",
            field=key,
        )
    return max(context, told) if scaling.kind == "yarn" else context


def told_of(ropes: tuple[Rope, ...], context: int) -> int:
    """The inverse of `stretched`: what a file says."""
    scaling = ropes[0].scaling if len(ropes) == 1 else None
    if scaling is None or scaling.kind not in ("linear", "dynamic"):
        return context
    return scaling.original_context


def check_order(
    low: float,
    high: float,
    *,
    where: str,
    prefix: str = "",
    names: tuple[str, str] = ("low_freq_factor", "high_freq_factor"),
) -> None:
    """Between the two the rule interpolates: they must differ, and in this order."""
    below, above = (f"{prefix}{name}" for name in names)
    if high <= low:
        raise InvalidArgument(
            f"{where}: {above} is {high}, must be above {below}, which is {low}", field=above
        )


def check_factors(factors: Any, key: str, *, where: str) -> tuple[float, ...]:
    """A tuple of numbers, one for each pair of features."""
    if not isinstance(factors, tuple) or len(factors) > 512:
        raise InvalidArgument(
            f"{where}: {key} is {shown(factors)}, must be a list of at most 512 numbers", field=key
        )
    return tuple(real(factor, "factor_of_a_pair", where=where, key=key) for factor in factors)
