"""How many replicas there are to be: by hand, by what must always hold, and as Serve asks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plinth.cluster.layout import StageSpec
from plinth.cluster.replicas import autoscaling
from plinth.cluster.scaling import HELD, LOAD, Memory, Policy, Rules, Seen, decide

RULES = Rules(over_s=30.0, down_after_s=300.0)
SEEN = Seen(now=1000.0, running=1, target=1, least=1, most=8, loads=[1.0])
# Two have run for long, and nothing is known of the last minutes.
SETTLED = Memory(running=2, since=0.0)


def two(*loads: float, **other: Any) -> Seen:
    return replace(SEEN, running=2, target=2, loads=loads, **other)


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (two(1.0, 1.0), 2),  # at the target
        (two(1.05, 1.1), 2),  # within a tenth of it
        (two(0.95, 0.9), 2),
        (two(1.5, 1.5), 3),  # 2 × 1.5
        (two(1.2, 1.2), 3),  # 2.4, rounded up
        (two(9.0, 9.0), 4),  # twice as many at most
        (two(0.4, 0.5), 1),  # 0.9, rounded up
        (two(0.0, 0.0), 1),  # never under the least
        (two(0.0, 0.0, least=2), 2),
        (two(1.5, 1.5, most=2), 2),  # never over the most
        (two(0.0, 0.0, held=True), 2),  # a job that must not move
        (two(2.5), 3),  # who is silent counts as idle when it would be more,
        (two(1.5), 2),
        (two(0.5), 2),  # and as at its target when it would be fewer
        (two(0.0), 1),
        (two(), 2),  # nothing is known
        (replace(SEEN, running=0, target=2, loads=[]), 2),  # all of them start
    ],
)
def test_by_hand(seen: Seen, wanted: int) -> None:
    assert decide(seen, SETTLED, Rules(30.0, 0.0))[0] == wanted


def test_a_controller_that_begins_anew_takes_nobody_away_at_once() -> None:
    wanted, memory = decide(two(0.0, 0.0), None, RULES)
    assert wanted == 2
    assert decide(two(0.0, 0.0, now=1299.0), memory, RULES)[0] == 2
    assert decide(two(0.0, 0.0, now=1300.0), memory, RULES)[0] == 1


def test_more_come_only_by_figures_of_those_that_run() -> None:
    """Else the load of one, still in the mean, would call for a third beside the second."""
    _, memory = decide(two(1.6, 1.6), Memory(running=1, since=0.0), RULES)
    assert memory.since == 1000.0
    assert decide(two(1.6, 1.6, now=1029.0), memory, RULES)[0] == 2
    assert decide(two(1.6, 1.6, now=1030.0), memory, RULES)[0] == 4


def test_as_many_as_were_needed_lately_stay() -> None:
    """Four minutes ago three were needed, two minutes ago two: neither is forgotten early."""
    memory: Memory | None = Memory(running=4, since=0.0)
    four = replace(SEEN, running=4, target=4)
    decided = []
    for now, load in ((1000.0, 0.7), (1120.0, 0.4), (1240.0, 0.1), (1301.0, 0.1), (1421.0, 0.1)):
        wanted, memory = decide(replace(four, now=now, loads=[load] * 4), memory, RULES)
        decided.append(wanted)
    assert decided == [3, 3, 3, 2, 1]


LOADS = st.floats(0, 50, allow_nan=False)


@st.composite
def looks(draw: st.DrawFn) -> Seen:
    least = draw(st.integers(1, 4))
    most = draw(st.integers(least, 12))
    running = draw(st.integers(0, most))
    return Seen(
        now=draw(st.floats(0, 1000)),
        running=running,
        target=draw(st.integers(least, most)),
        least=least,
        most=most,
        loads=draw(st.lists(LOADS, max_size=running)),
        held=draw(st.booleans()),
    )


@given(st.lists(looks(), max_size=30))
def test_whatever_happens(found: list[Seen]) -> None:
    memory: Memory | None = None
    for seen in sorted(found, key=lambda one: one.now):
        wanted, memory = decide(seen, memory, RULES)
        assert seen.least <= wanted <= seen.most
        assert wanted <= max(seen.target, 2 * seen.running, seen.least)
        if seen.held or not seen.loads:
            assert wanted >= min(seen.target, seen.most)
        numbers = [number for _, number in memory.enough]
        assert numbers == sorted(set(numbers), reverse=True), "memory is as long as it need be"


@given(looks(), st.integers(0, 11), st.floats(0, 5, allow_nan=False))
@example(Seen(now=0.0, running=3, target=1, least=1, most=3, loads=[0.0]), 0, 1.0)
def test_more_load_never_means_fewer(seen: Seen, which: int, more: float) -> None:
    memory = Memory(running=seen.running, since=-100.0)
    heavier = list(seen.loads)
    if heavier:
        heavier[which % len(heavier)] += more
    rules = Rules(30.0, 0.0)
    assert decide(seen, memory, rules)[0] <= decide(replace(seen, loads=heavier), memory, rules)[0]


@given(st.floats(0.01, 3, allow_nan=False), st.integers(1, 8))
def test_an_even_load_comes_to_rest(demand: float, start: int) -> None:
    """With work that spreads evenly, the number ends where each is at its target or below."""
    memory: Memory | None = None
    running, now = start, 0.0
    for _ in range(40):
        seen = replace(SEEN, now=now, running=running, target=running)
        seen = replace(seen, loads=[demand / running] * running)
        running, memory = decide(seen, memory, RULES)
        now += 60.0
    assert demand <= running * 1.1 + 1e-9
    assert running == 1 or demand > (running - 1) * 0.9


class Context:
    """The part of Serve's AutoscalingContext that the policy reads."""

    def __init__(self, reported: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
        self.current_time = 1000.0
        self.current_num_replicas = self.target_num_replicas = 2
        self.capacity_adjusted_min_replicas, self.capacity_adjusted_max_replicas = 1, 8
        self.policy_state: dict[str, Any] = {"memory": SETTLED}
        self.raw_metrics = {
            name: {
                replica: [SimpleNamespace(timestamp=t, value=v) for t, v in points]
                for replica, points in by_replica.items()
            }
            for name, by_replica in reported.items()
        }


@pytest.mark.parametrize(
    ("reported", "wanted"),
    [
        ({}, 2),
        ({LOAD: {"a": [(975, 1.0), (990, 3.0)], "b": [(990, 1.0)]}}, 3),  # (2 + 1), by means
        ({LOAD: {"a": [(975, 0.2)], "b": [(900, 9.0)]}}, 2),  # b fell silent
        ({LOAD: {"a": [(975, 0.2)], "b": [(990, 0.2)]}}, 1),
        ({LOAD: {"a": [(975, 0.2)], "b": [(990, 0.2)]}, HELD: {"a": [(975, 1.0)]}}, 2),
    ],
)
def test_from_what_replicas_have_reported(reported: Any, wanted: int) -> None:
    policy = Policy(over_s=30.0, down_after_s=0.0)
    decided, state = policy(Context(reported))
    assert decided == wanted
    assert state["memory"].running == 2


# Ray Serve's own schemas speak pydantic's older dialect.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_serve_takes_the_policy_and_its_bounds() -> None:
    from ray.serve.config import AutoscalingConfig

    spec = StageSpec("reward", "m:b", replicas=2, max_replicas=5, down_after_s=60.0)
    config = AutoscalingConfig(**autoscaling(spec))
    assert (config.min_replicas, config.max_replicas) == (2, 5)
    made = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert made(Context({LOAD: {"a": [(999, 2.0)], "b": [(999, 2.0)]}}))[0] == 4
    fixed = AutoscalingConfig(**autoscaling(replace(spec, max_replicas=0)))
    assert (fixed.min_replicas, fixed.max_replicas) == (2, 2)


def test_serves_controller_needs_nothing_of_ours() -> None:
    """It is pickled by value: a controller of another version, or without Plinth, can run it."""
    code = (
        "import sys; import plinth.cluster.scaling as s\n"
        "ours = {n for n in sys.modules if n.startswith('plinth.')}\n"
        "assert ours == {'plinth.cluster', 'plinth.cluster.scaling'}, ours"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
