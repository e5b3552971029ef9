"""Do answers speak of what they were asked about? By the words of references, one to a prompt.

An answer names some of its reference's content words by chance: all that is written of one subject
shares words. So its share of the own reference's words is compared with its share of the other
prompts' references; what is there of the prompt itself is left out, since to say the question again
is no answer. The test is by permutation (Fisher 1935; the p-value by Phipson, Smyth 2010): were the
answers about nothing, the references could change places among the prompts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS = 1999
# Prompts that are looked at: every answer is held against every reference, which takes memory of
# their number's square.
MOST = 1000
_LEAST_LETTERS = 3
# What English sentences are held together by.
_STOP_WORDS = """
    all and any are because been before but can does each either else for from had has have how
    into its may more most must neither nor not now off once only other our out over own per
    shall she should since some such than that the their them then there these they this those
    through too under until upon use used using very was were what when where whether which
    while who whom whose why will with within without would you your
"""


@dataclass(frozen=True)
class ReferenceOverlap:
    """own: mean share of the own reference's content words that an answer names. others: of the
    other prompts' references. p_value: that own is so large by chance, one-sided."""

    own: float
    others: float
    p_value: float


def reference_overlap(
    prompts: Sequence[str], answers: Sequence[str], references: Sequence[str], seed: int = 0
) -> ReferenceOverlap:
    """Over the first `MOST` prompts, each with its answer and its reference. Fewer than two, or
    references without words, show nothing: the p-value is 1. ValueError unless the three are as
    many."""
    if not len(prompts) == len(answers) == len(references):
        raise ValueError(
            f"{len(prompts)} prompts, {len(answers)} answers and {len(references)} references"
        )
    prompts, answers, references = prompts[:MOST], answers[:MOST], references[:MOST]
    asked = [content_words(text) for text in prompts]
    named = [content_words(text) - known for text, known in zip(answers, asked, strict=True)]
    wanted = [content_words(text) for text in references]
    count = len(asked)
    if count < 2:
        return ReferenceOverlap(0.0, 0.0, 1.0)
    # Row: the answer and prompt; column: the reference, without the words of that prompt.
    sizes_n = np.array([len(words) for words in wanted])
    left_nn = sizes_n[None, :] - _shared(asked, wanted)
    share_nn = _shared(named, wanted) / np.maximum(left_nn, 1)
    own = float(np.trace(share_nn)) / count
    others = (float(share_nn.sum()) / count - own) / (count - 1)
    chance = np.random.default_rng(seed)
    rows = np.arange(count)
    drawn = (share_nn[rows, chance.permutation(count)].mean() for _ in range(_DRAWS))
    as_large = sum(bool(value >= own - 1e-12) for value in drawn)
    return ReferenceOverlap(own, others, (1 + as_large) / (1 + _DRAWS))


def content_words(text: str) -> set[str]:
    """Words of three letters and more, in small letters, without those that only hold a sentence
    together. Digits and underscores part words, so that a name in code is its words."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return {word for word in words if len(word) >= _LEAST_LETTERS}.difference(_STOP_WORDS.split())


def _shared(texts: Sequence[set[str]], references: Sequence[set[str]]) -> NDArray[np.int64]:
    """[N, N]: how many words text n shares with each reference."""
    found: dict[str, list[int]] = {}
    for number, words in enumerate(references):
        for word in words:
            found.setdefault(word, []).append(number)
    of = {word: np.array(numbers) for word, numbers in found.items()}
    nothing = np.array([], dtype=np.int64)
    return np.stack(
        [
            np.bincount(
                np.concatenate([nothing, *(of[word] for word in words & of.keys())]),
                minlength=len(references),
            )
            for words in texts
        ]
    )
