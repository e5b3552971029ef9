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
        """Fractions of `total` into steps; at least one step of warm-up where any is asked.

        InvalidArgument: an unknown kind, or fractions of WSD that together exceed 1.
        """
        if kind not in KINDS:
            raise InvalidArgument(
                f"schedule {kind!r} is unknown; use {' or '.join(KINDS)}", field="schedule"
            )
        warmup = math.ceil(total * warmup_fraction)
        if kind == "cosine":
            return cls("cosine", peak, total, warmup, 0)
        check_fractions(warmup_fraction, decay_fraction)
        # What rounding makes of a whole that the two share is the decay's to give.
        decay = min(round(total * decay_fraction), total - warmup)
        return cls("wsd", peak, total, warmup, decay)

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


def check_fractions(warmup_fraction: float, decay_fraction: float) -> None:
    """Of a WSD schedule: it can't rise and fall in the same step. InvalidArgument."""
    together = warmup_fraction + decay_fraction
    if together > 1 + 1e-9:  # 0.3 + 0.7 in floating point, as read from float32
        raise InvalidArgument(
            f"warmup_fraction {warmup_fraction:g} and decay_fraction {decay_fraction:g} are "
            f"{together:g} of the steps together, at most 1 fits; make one smaller",
            field="decay_fraction",
        )
