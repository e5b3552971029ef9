"""How long a step may take before it counts as a hang, from steps that were measured.

A step of a small model on a busy laptop takes milliseconds, one of a large model on two cores more
than a minute, so no constant tells the one's hang from the other's work.
"""

from __future__ import annotations

# A machine that sleeps, swaps or is full of other work holds a step up for seconds.
AT_LEAST_S = 60.0
# Before anything was measured: 512 tokens of a model of 70 billion weights on two cores.
FIRST_S = 900.0
# Times the slowest step of its size. A longer context and a busier machine are in it.
SLOWER = 8.0


class StepTimes:
    """The slowest step of each size, sizes counted in powers of two of tokens."""

    def __init__(self) -> None:
        self._slowest: dict[int, tuple[int, float]] = {}  # by size: tokens, seconds

    def add(self, tokens: int, seconds: float) -> None:
        """A step was made."""
        size = tokens.bit_length()
        if seconds > self._slowest.get(size, (0, 0.0))[1]:
            self._slowest[size] = (tokens, seconds)

    def limit_s(self, tokens: int) -> float:
        """Seconds after which a step of so many tokens hangs.

        Where none of its size or above was measured: as the next smaller one, token by token (more
        tokens at once take less each).
        """
        size = tokens.bit_length()
        known = [s for s in sorted(self._slowest) if s >= size]
        if known:
            return max(AT_LEAST_S, SLOWER * self._slowest[known[0]][1])
        if not self._slowest:
            return FIRST_S
        measured, seconds = self._slowest[max(self._slowest)]
        return max(AT_LEAST_S, SLOWER * seconds * tokens / max(1, measured))
