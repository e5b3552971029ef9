"""How loaded a replica is, in one figure: 1.0 is at its target, 2.0 has twice the work it should.

What follows from it (more replicas, or fewer) is decided elsewhere, from the figures of all.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from plinth.shared.queue import Queue
from plinth.shared.telemetry import gauge

# A single long prompt says nothing about how long the others wait.
FEWEST_FIRST_TOKENS = 5
FIRST_TOKENS_KEPT = 1000
LOAD = gauge("stage_load_ratio", "How loaded this replica is: 1 is at its target.", ["stage"])


@dataclass(frozen=True)
class Load:
    """held: it has work that would have to begin again elsewhere, at least in part."""

    ratio: float
    held: bool = False


@runtime_checkable
class ReportsLoad(Protocol):
    """A stage's front by whose load its replicas can be scaled."""

    async def load(self) -> Load:
        """PlinthError when it can't be told now."""
        ...


async def queue_load(queue: Queue, *, oldest_s: float, running: int, slots: int) -> float:
    """Of a consumer: how late the queue is against `oldest_s`, or how much of it is busy.

    Lateness alone would be 0 whenever there are just enough replicas, who would then be sent away.
    Unavailable while Redis is away.
    """
    return max((await queue.inspect()).oldest_s / oldest_s, running / slots)


class FirstTokens:
    """How long first tokens took lately."""

    def __init__(self, over_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._over_s, self._clock = over_s, clock
        self._seen: deque[tuple[float, float]] = deque(maxlen=FIRST_TOKENS_KEPT)

    def add(self, seconds: float) -> None:
        """One answer's."""
        self._seen.append((self._clock(), seconds))

    def median_s(self) -> float:
        """0 while there are too few to say."""
        after = self._clock() - self._over_s
        while self._seen and self._seen[0][0] <= after:
            self._seen.popleft()
        if len(self._seen) < FEWEST_FIRST_TOKENS:
            return 0.0
        return statistics.median(seconds for _, seconds in self._seen)
