"""How many replicas a stage is to have, from how loaded those are that run.

Ray Serve sees none of our requests, so it is told: each replica reports one figure, 1.0 when it is
at its target (`plinth.shared.load`), and the policy here answers with a number. Serve pickles this
module by value into its controller, so it imports nothing but the standard library.

The rule is that of Kubernetes' HorizontalPodAutoscaler: current × mean load, rounded up. Who has
reported nothing yet counts as idle when it would be more and as at its target when it would be
fewer. More come at once, at most twice as many, and not before the figures are of the replicas that
run now; some go when fewer have been enough for a while.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOAD, HELD = "load", "held"  # what a replica reports
TOLERANCE = 0.1
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rules:
    """over_s: what figures are averaged over, and how long they settle after the number of
    replicas has changed. down_after_s: for how long fewer must have been enough."""

    over_s: float
    down_after_s: float


@dataclass(frozen=True)
class Seen:
    """One look. running: replicas that run now; target: how many there are to be; least, most:
    bounds. loads: figures of those that have reported. held: one has work that must not move."""

    now: float
    running: int
    target: int
    least: int
    most: int
    loads: Sequence[float]
    held: bool = False


@dataclass(frozen=True)
class Memory:
    """What one look leaves to the next. since: when `running` became what it is. enough: (time,
    replicas that were enough), falling in number: of the last `down_after_s` the largest is first.
    """

    running: int
    since: float
    enough: tuple[tuple[float, int], ...] = ()


def decide(seen: Seen, memory: Memory | None, rules: Rules) -> tuple[int, Memory]:
    """How many replicas there are to be, and what to remember."""
    if memory is None:
        # Nothing is known of before (Serve's controller began anew): as many as there are to be
        # were needed.
        memory = Memory(seen.running, seen.now, ((seen.now, seen.target),))
    since = memory.since if seen.running == memory.running else seen.now
    wanted = _enough(seen)
    enough = _remember(memory.enough, seen.now, wanted, rules.down_after_s)
    if wanted > seen.target:
        settled = seen.now - since >= rules.over_s
        decided = wanted if settled else seen.target
    else:
        decided = min(seen.target, enough[0][1])
    bounded = max(seen.least, min(seen.most, decided))
    return bounded, Memory(seen.running, since, enough)


def _enough(seen: Seen) -> int:
    """Replicas that would bring the mean load to 1.0, by the present figures alone."""
    if not seen.loads or not seen.running:
        return seen.target
    silent = max(0, seen.running - len(seen.loads))
    # current × mean load is the sum of the loads.
    total = sum(seen.loads)
    if total > seen.running * (1 + TOLERANCE):
        # Some of those that are to be may still start.
        return max(seen.target, min(math.ceil(total - _ROUNDING), 2 * seen.running))
    if total + silent < seen.running * (1 - TOLERANCE) and not seen.held:
        # More may still run than are to be: those that go are no reason to have them back.
        return min(seen.target, math.ceil(total + silent - _ROUNDING))
    return seen.target


def _remember(
    enough: tuple[tuple[float, int], ...], now: float, wanted: int, window_s: float
) -> tuple[tuple[float, int], ...]:
    """With `wanted` added, without what is too old or can't be the largest any more."""
    kept = [one for one in enough if now - one[0] < window_s and one[1] > wanted]
    return (*kept, (now, wanted))


class Policy:
    """What Serve calls ten times a second with its AutoscalingContext; one per deployment."""

    def __init__(self, over_s: float, down_after_s: float) -> None:
        self._rules = Rules(over_s, down_after_s)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        seen = self._seen(context)
        wanted, memory = decide(seen, context.policy_state.get("memory"), self._rules)
        return wanted, {"memory": memory}

    def _seen(self, context: Any) -> Seen:
        now = float(context.current_time)
        loads, held = [], False
        if context.capacity_adjusted_min_replicas < context.capacity_adjusted_max_replicas:
            reported: Mapping[str, Mapping[Any, Sequence[Any]]] = context.raw_metrics
            after = now - self._rules.over_s
            loads = list(_means(reported.get(LOAD, {}), after))
            held = any(mean > 0 for mean in _means(reported.get(HELD, {}), after))
        return Seen(
            now=now,
            running=context.current_num_replicas,
            target=context.target_num_replicas,
            least=context.capacity_adjusted_min_replicas,
            most=context.capacity_adjusted_max_replicas,
            loads=loads,
            held=held,
        )


def _means(by_replica: Mapping[Any, Sequence[Any]], after: float) -> list[float]:
    """Each replica's mean since `after`; of a replica that fell silent, nothing."""
    found = []
    for points in by_replica.values():
        values = [point.value for point in points if point.timestamp > after]
        if values:
            found.append(sum(values) / len(values))
    return found
