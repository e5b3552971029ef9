"""Answers that rules made worse, for preference pairs that nobody had to judge."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from hashlib import blake2b


def made_worse(answer: str, foreign: str) -> tuple[str, str]:
    """(rule, worse answer), both decided by the answer alone and by another one, if there is one.

    A little worse as often as much worse: a judge that only ever saw ruins can't tell a good answer
    from a fair one.
    """
    chance = random.Random(blake2b(answer.encode(), digest_size=8).digest())
    by_another = ("misworded", "foreign") if foreign else ()
    rule = chance.choice(("truncated", "scrambled", "repeated", *by_another))
    if rule == "foreign":
        return rule, foreign
    words = answer.split()
    changes: dict[str, Callable[[list[str], random.Random], list[str]]] = {
        "truncated": _truncated,
        "scrambled": _scrambled,
        "repeated": _repeated,
        "misworded": partial(_misworded, foreign=foreign.split()),
    }
    return rule, " ".join(changes[rule](words, chance))


def _truncated(words: list[str], chance: random.Random) -> list[str]:
    """A quarter of it or more."""
    return words[: chance.randrange(max(1, len(words) // 4), max(2, len(words) - 1))]


def _scrambled(words: list[str], chance: random.Random) -> list[str]:
    """All of it, or neighbours here and there."""
    width = min(chance.choice((2, 3, len(words))), len(words))
    for _ in range(max(1, len(words) // 8) if width < len(words) else 1):
        at = chance.randrange(len(words) - width + 1)
        part = words[at : at + width]
        chance.shuffle(part)
        words = [*words[:at], *part, *words[at + width :]]
    return words


def _repeated(words: list[str], chance: random.Random) -> list[str]:
    """Some words again, one to three times."""
    width = chance.randrange(1, min(5, len(words)) + 1)
    at = chance.randrange(len(words) - width + 1)
    part = words[at : at + width]
    return [*words[:at], *part * chance.randrange(2, 5), *words[at + width :]]


def _misworded(words: list[str], chance: random.Random, *, foreign: list[str]) -> list[str]:
    """One word in three to eight is another answer's."""
    for at in chance.sample(range(len(words)), max(1, len(words) // chance.choice((3, 5, 8)))):
        words = [*words[:at], chance.choice(foreign), *words[at + 1 :]]
    return words
