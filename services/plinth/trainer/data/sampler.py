"""Which item comes when: a pure function of (seed, position), so that a cursor is one number.

The order of each epoch is a keyed bijection of [0, n): a four-round Feistel network over the
next even power of two, walked until it lands inside (Black & Rogaway, "Ciphers with Arbitrary
Finite Domains", 2002, the cycle-walking construction). It needs no memory and no library's
random stream, so the order stays the same for ever. Speed matters more here than secrecy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4
_WEYL = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed


class Shuffle:
    """The bijection of [0, n) that belongs to (seed, epoch)."""

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        if n < 1:
            raise ValueError(f"cannot shuffle {n} items")
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._half = np.uint64((bits + 1) // 2)
        self._low = np.uint64((1 << int(self._half)) - 1)
        base = (seed * 0xD1342543DE82EF95 + epoch * _WEYL) & _MASK64
        keys = np.asarray([(base + r * _WEYL) & _MASK64 for r in range(1, _ROUNDS + 1)], np.uint64)
        self._keys = _mix(keys)

    def _permute(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half, x & self._low
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._low)
        return (left << self._half) | right

    def __call__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each position of the epoch (0 ≤ index < n) points."""
        x = self._permute(index.astype(np.uint64))
        while (outside := x >= self.n).any():
            x[outside] = self._permute(x[outside])
        return x.astype(np.int64)


class BatchSampler:
    """An endless stream of items, epoch after epoch, addressed by position."""

    def __init__(self, items: int, seed: int) -> None:
        self.items, self.seed = items, seed

    def at(self, position: int, count: int) -> NDArray[np.int64]:
        """Items [count] from `position` on; may span epochs."""
        positions = np.arange(position, position + count, dtype=np.int64)
        epochs = positions // self.items
        found = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = Shuffle(self.items, self.seed, int(epoch))(positions[here] % self.items)
        return found
