import math

import pytest

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
