import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plinth.algos.schedules import Schedule
from plinth.shared.errors import InvalidArgument


def test_wsd_rises_stays_and_falls_to_zero():
    schedule = Schedule.of("wsd", 1.0, 100, 0.1, 0.4)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert set(rates[10:60]) == {1.0}
    assert rates[60:] == pytest.approx([1 - i / 40 for i in range(40)])


def test_cosine_ends_at_a_tenth():
    schedule = Schedule.of("cosine", 2.0, 1000, 0.0, 0.4)
    assert schedule.at(0) == 2.0
    assert schedule.at(500) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    expected = 2.0 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.999)))
    assert schedule.at(999) == pytest.approx(expected)


def test_no_warm_up_no_decay_is_constant():
    schedule = Schedule.of("wsd", 3.0, 7, 0.0, 0.0)
    assert {schedule.at(step) for step in range(7)} == {3.0}


def test_unknown_schedule_names_the_known():
    with pytest.raises(InvalidArgument, match="cosine or wsd"):
        Schedule.of("linear", 1.0, 10, 0.1, 0.1)


fractions = st.floats(0.0, 1.0, allow_subnormal=False)


@given(st.sampled_from(["cosine", "wsd"]), st.integers(1, 400), fractions, fractions)
def test_no_schedule_jumps(kind, total, warmup, decay):
    """From one step to the next the rate changes by at most the steepest of its parts: warm-up and
    decay are linear, the cosine's slope is at most (1 - floor) * pi / 2 over its length. Or the
    schedule is refused, which must be since its parts don't fit into the whole."""
    try:
        schedule = Schedule.of(kind, 2.0, total, warmup, decay)
    except InvalidArgument as refused:
        assert kind == "wsd" and warmup + decay > 1
        assert "at most 1 fits" in refused.message
        return
    rates = [schedule.at(step) for step in range(total)]
    assert all(0 < rate <= 2.0 for rate in rates)
    rise = math.ceil(total * warmup)
    fall = min(round(total * decay), total - rise)
    slopes = [1 / rise if rise else 0.0]
    if kind == "cosine":
        slopes.append(0.9 * math.pi / 2 / max(1, total - rise))
    elif fall:
        slopes.append(1 / fall)
    steepest = 2.0 * max(slopes)
    for step in range(1, total):
        assert abs(rates[step] - rates[step - 1]) <= steepest + 1e-9, (step, rates)
    if rise and kind == "wsd":
        assert rates[rise - 1] == 2.0  # the peak is reached


@given(st.integers(1, 200), fractions)
def test_the_decay_takes_what_the_advice_leaves(total, warmup):
    """What the refusal asks for is accepted, however the fractions are rounded."""
    with pytest.raises(InvalidArgument, match="make one smaller"):
        Schedule.of("wsd", 1.0, total, warmup, 1.0001)
    schedule = Schedule.of("wsd", 1.0, total, warmup, 1.0 - warmup)
    assert schedule.warmup + schedule.decay <= total
