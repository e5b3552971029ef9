"""Small configurations of every family, for `family_models`.

What a family's `config.json` can say is in `family_axes`; `configurations` draws from there so that
every alternative occurs in one at least. The tests that all families share take their models from
here: `tests/unit/models/test_families*.py`, `test_family_files.py`, `test_config.py`,
`test_hf_keys.py`.
"""

from __future__ import annotations

import itertools
import random

from family_axes import AXES, DIVIDED, FEW_EXPERTS, ORIGINAL, Keys
from plinth.models.families import FAMILIES

__all__ = ["CONTEXT", "ORIGINAL", "VOCAB", "Keys", "configurations", "numbered", "smallest"]

VOCAB, CONTEXT, LAYERS = 96, 64, 3
COMMON: Keys = {
    "vocab_size": VOCAB,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Configurations of the fast suite; the others are slow.
FAST = 2


def configurations(family: str) -> list[Keys]:
    """Four at least, as many as its longest axis has alternatives; each axis in an order of its
    own, over and over."""
    axes = AXES[family]
    orders = []
    for number, axis in enumerate(axes):
        order = list(axis)
        random.Random(f"{family} {number}").shuffle(order)
        orders.append(itertools.cycle(order))
    drawn = []
    for _ in range(max(4, *map(len, axes))):
        keys = dict(COMMON)
        for order in orders:
            chosen = next(order)
            keys |= chosen(keys) if callable(chosen) else chosen
        drawn.append(_cleaned(family, keys))
    return drawn


def smallest(family: str) -> Keys:
    """The keys of a small model that says nothing but its sizes."""
    size = AXES[family][0][0]
    assert not callable(size)
    few = FEW_EXPERTS.get(family, {})
    return _cleaned(family, COMMON | size | {"num_hidden_layers": 2} | few)


def _cleaned(family: str, keys: Keys) -> Keys:
    """Without the width of a head, which the axes speak of, where the family has no key for it;
    with the size of weights."""
    # As large in any width: a sum of so many products has a size that float32 holds alike.
    width = keys.get("hidden_size") or keys["n_embd"]
    keys["initializer_range"] = round(1.7 / width**0.5, 3)
    return {
        key: value for key, value in keys.items() if not (family in DIVIDED and key == "head_dim")
    }


def numbered(*, slow: bool) -> list[tuple[str, int]]:
    """(family, number) of the configurations of the fast suite, or of the others."""
    return [
        (family, number)
        for family in FAMILIES
        for number in range(len(configurations(family)))
        if (number >= FAST) == slow
    ]
