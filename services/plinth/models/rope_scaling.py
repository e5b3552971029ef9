"""How rotary frequencies are stretched for contexts longer than those of the training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plinth.models.limits import real, shown, whole
from plinth.shared.errors import InvalidArgument

_WHERE = "rope scaling"


@dataclass(frozen=True)
class RopeScaling:
    """`linear` (Chen et al. 2023: divided by `factor`), or `llama3` (Llama 3.1: by wavelength,
    those longer than original_context / low_freq_factor divided, those shorter than
    original_context / high_freq_factor kept, what lies between interpolated).

    Raises InvalidArgument for what cannot be computed. Unit of `original_context`: tokens.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise InvalidArgument(
                f"{_WHERE}: kind is {shown(self.kind)}, use 'linear' or 'llama3'", field="kind"
            )
        for field in ("factor", "low_freq_factor", "high_freq_factor"):
            real(getattr(self, field), field, where=_WHERE)
        whole(self.original_context, "original_context", where=_WHERE)
        check_order(self.low_freq_factor, self.high_freq_factor, where=_WHERE)


def check_order(low: float, high: float, *, where: str, prefix: str = "") -> None:
    """Between the two wavelengths the rule interpolates: they must differ, and in this order."""
    if high <= low:
        raise InvalidArgument(
            f"{where}: {prefix}high_freq_factor is {high}, must be above {prefix}low_freq_factor, "
            f"which is {low}",
            field=f"{prefix}high_freq_factor",
        )
