"""What can be told of an answer's text without a model: one definition for the reward stage's rules
and for the coordinator's checks and gates.

Case is Unicode's caseless matching (`str.casefold`), words are what stands between white space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

_FENCE = re.compile(r"```[A-Za-z0-9]*[ \t]*\n")


def word_count(text: str) -> int:
    """What stands between white space."""
    return len(text.split())


def first_capital(text: str) -> str:
    """The first capital or titlecase letter; empty where there is none."""
    return next((c for c in text if c.isupper() or c.istitle()), "")


def phrases_in(text: str, phrases: Sequence[str], *, ignore_case: bool = True) -> list[str]:
    """Those of `phrases` that stand in `text`."""
    if not ignore_case:
        return [phrase for phrase in phrases if phrase in text]
    folded = text.casefold()
    return [phrase for phrase in phrases if phrase.casefold() in folded]


def json_value(text: str, *, fenced: bool = False) -> Any:
    """The one JSON value (RFC 8259, so neither NaN nor Infinity) that `text` is. ValueError: it is
    none. fenced: a ``` block around it is let pass."""
    text = text.strip()
    if fenced and (fence := _FENCE.match(text)) and text.endswith("```"):
        text = text[fence.end() : -3]
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def distinct_trigrams(texts: Sequence[str]) -> float:
    """Distinct word trigrams over all word trigrams, in [0, 1] (distinct-3, Li et al. 2016,
    https://arxiv.org/abs/1510.03055), over all `texts` together and within each; 1 where none has
    three words.

    Case is ignored: "The list of" and "the list of" say the same, and a model that repeats itself
    at the beginning of each sentence does so with a capital.
    """
    trigrams = [
        tuple(words[at : at + 3])
        for words in (text.casefold().split() for text in texts)
        for at in range(len(words) - 2)
    ]
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0
