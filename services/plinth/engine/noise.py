"""Counter-based randomness: a token's noise depends on what it is, not on when it is made.

Philox4x64-10 (Salmon et al. 2011, through numpy's raw stream, whose bits are fixed) keyed on the
seed; the counter holds the output position, the sample index and the purpose. So a seed gives
the same tokens on any shard, in any batch, after any restart, and two models that are asked for
the same position share their noise (which is what makes speculation exact and often right).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE = 1  # purpose: choosing a token


def uniforms(
    seed: int, sample_index: int, position: int, count: int, purpose: int = SAMPLE
) -> NDArray[np.float64]:
    """`count` numbers in (0, 1), 52 bits each; element i belongs to token i."""
    counter = np.array([0, position, sample_index, purpose], dtype=np.uint64)
    raw = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=counter)
    bits = raw.random_raw(count) >> np.uint64(12)
    uniform: NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return uniform
