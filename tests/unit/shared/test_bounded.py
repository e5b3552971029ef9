"""What is forgotten first, and when."""

from __future__ import annotations

from plinth.shared.bounded import Bounded


def test_what_was_not_asked_for_is_forgotten_first() -> None:
    held: Bounded[str, int] = Bounded(3)
    for number, key in enumerate("abc"):
        held.put(key, number)
    assert held.get("a") == 0
    held.put("d", 3)
    assert [held.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_by_weight_and_the_newest_stays() -> None:
    held: Bounded[str, str] = Bounded(10)
    held.put("a", "x", 4)
    held.put("b", "x", 6)
    held.put("a", "y", 5)
    assert (held.get("a"), held.get("b"), len(held)) == ("y", None, 1)
    held.put("heavy", "z", 100)
    assert (held.get("heavy"), len(held)) == ("z", 1)
    held.put("light", "z", 1)
    assert (held.get("heavy"), held.get("light")) == (None, "z")
