"""Learning rates as functions of the step; pure numbers, no optimiser is known here.

Steps count from 0; `total` steps are taken. Warm-up is linear from lr/warmup to lr.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from plinth.shared.errors import InvalidArgument

Kind = Literal["cosine", "wsd"]
KINDS = ("cosine", "wsd")
FLOOR = 0.1  # cosine ends at this share of the peak (Touvron et al. 2023); WSD ends at zero


@dataclass(frozen=True)
class Schedule:
    """`cosine` (Loshchilov & Hutter 2017) or `wsd`: warm-up, stable, decay (Hu et al. 2024).

    The decay of WSD falls linearly to zero (Hägele et al. 2024, who find it as good as any).
    """

    kind: Kind
    peak: float
    total: int
    warmup: int
    decay: int

    @classmethod
    def of(
        cls, kind: str, peak: float, total: int, warmup_fraction: float, decay_fraction: float
    ) -> Schedule:
        """Fractions of `total` into steps; at least one step of warm-up where any is asked."""
        if kind not in KINDS:
            raise InvalidArgument(
                f"schedule {kind!r} is unknown; use {' or '.join(KINDS)}", field="schedule"
            )
        warmup = math.ceil(total * warmup_fraction)
        decay = round(total * decay_fraction) if kind == "wsd" else 0
        return cls("wsd" if kind == "wsd" else "cosine", peak, total, warmup, decay)

    def at(self, step: int) -> float:
        """The learning rate of optimiser step `step`."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if self.kind == "cosine":
            progress = (step - self.warmup) / max(1, self.total - self.warmup)
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
            return self.peak * (FLOOR + (1 - FLOOR) * cosine)
        left = self.total - step
        return self.peak * min(1.0, left / self.decay) if self.decay else self.peak
