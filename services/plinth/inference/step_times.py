"""How long a step may take before it counts as a hang, from steps that were measured.

A step of a small model on a busy laptop takes milliseconds, one of a large model on two cores more
than a minute, so no constant tells the one's hang from the other's work.
"""

from __future__ import annotations

from collections import deque

# A machine that sleeps, swaps or is full of other work holds a step up for seconds.
AT_LEAST_S = 60.0
# Before anything was measured: 512 tokens of a model of 70 billion weights on two cores.
FIRST_S = 900.0
# Times the slowest step of its size. A longer context and a busier machine are in it.
SLOWER = 8.0


# Steps of each size that count.
LAST = 256


class StepTimes:
    """The slowest of the last steps of each size, sizes counted in powers of two of tokens."""

    def __init__(self) -> None:
        self._steps: dict[int, deque[tuple[float, int]]] = {}  # by size: seconds, tokens

    def add(self, tokens: int, seconds: float) -> None:
        """A step was made. One that took longer than it should teaches nothing."""
        if seconds <= self.limit_s(tokens):
            size = tokens.bit_length()
            self._steps.setdefault(size, deque(maxlen=LAST)).append((seconds, tokens))

    def limit_s(self, tokens: int) -> float:
        """Seconds after which a step of so many tokens hangs.

        Where none of its size or above was measured: as the next smaller one, token by token (more
        tokens at once take less each).
        """
        size = tokens.bit_length()
        slowest = {s: max(tuple(steps)) for s, steps in tuple(self._steps.items())}
        known = [s for s in sorted(slowest) if s >= size]
        if known:
            return max(AT_LEAST_S, SLOWER * slowest[known[0]][0])
        if not slowest:
            return FIRST_S
        seconds, measured = slowest[max(slowest)]
        return max(AT_LEAST_S, SLOWER * seconds * tokens / max(1, measured))
