"""Byte-level n-gram language model: the yardstick that a neural model must beat.

Interpolated modified Kneser-Ney smoothing after Chen & Goodman, "An Empirical Study of Smoothing
Techniques for Language Modeling" (1998), section 4.1.6 and equations 26 and 27:

    p(b | h) = max(0, a(hb) - D(a(hb))) / a(h·)  +  gamma(h) · p(b | h')          (1)
    gamma(h) = (D1·N1(h) + D2·N2(h) + D3·N3+(h)) / a(h·)                          (2)

where h' drops the oldest byte of h, a() is the plain count at the highest order and the number of
distinct preceding symbols below it, and p at order 0 is uniform over the 256 bytes. A context
that was never seen passes its whole mass to the shorter one. Where a corpus is too small to
estimate an order's discounts they are 0.5, 1 and 1.5, as in KenLM's `--discount_fallback`.

Each document begins with `order - 1` start symbols (number 256), so contexts never cross
documents and the first byte has a context too; start symbols are never predicted. An n-gram is
one integer of 9 bits per symbol, the oldest symbol highest, so that the numeric order of keys
groups them by context. Everything is sorting and searching in numpy; there is no torch here and
nothing is known of tokens or of files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

ALPHABET = 256
_START = 256
_BITS = 9
_MASK = (1 << _BITS) - 1
# Bytes counted at a time: bounds the memory of one sort to a few hundred MB.
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class _Order:
    """Statistics of one order k: K n-grams of k symbols and the M contexts that they share."""

    grams_k: Keys  # sorted
    weight_k: Floats  # (a - D(a)) / a(h·): the first term of (1)
    contexts_m: Keys  # sorted keys of k - 1 symbols
    gamma_m: Floats  # (2)


class ByteNgram:
    """p(next byte | up to `order - 1` bytes before it). `fit` once, then ask."""

    def __init__(self, order: int = 5) -> None:
        if not 1 <= order <= 7:  # 7 symbols of 9 bits are what an int64 holds
            raise ValueError(f"order must be 1 to 7, not {order}")
        self.order = order
        self._orders: list[_Order] = []  # from order 1 up

    def fit(self, documents: Iterable[bytes]) -> ByteNgram:
        """Counts the documents; they are read once, in chunks. ValueError when there is no byte."""
        keys, counts = _merge(_count_chunks(documents, self.order))
        if keys.size == 0:
            raise ValueError("an n-gram model needs at least one byte of text")
        orders = [_smooth(keys, counts)]
        for length in range(self.order - 1, 0, -1):
            # 1. Each distinct n-gram of length + 1 symbols is one distinct predecessor of its
            #    suffix. 2. The suffixes, counted, are the continuation counts of this order.
            keys, counts = np.unique(keys & ((1 << (_BITS * length)) - 1), return_counts=True)
            orders.append(_smooth(keys, counts.astype(np.int64)))
        self._orders = orders[::-1]
        return self

    def log2_probabilities(self, document: bytes) -> Floats:
        """log2 p of each byte of one document given those before it: [len(document)]."""
        return np.log2(self._interpolate(_grams(document, self.order)))

    def distribution(self, context: bytes) -> Floats:
        """p(next byte | context), [256]; the context is the start of a document when short."""
        last_bytes = context[-(self.order - 1) :] if self.order > 1 else b""
        prefix = _grams(last_bytes + b"\0", self.order)[-1] & ~_MASK
        return self._interpolate(prefix | np.arange(ALPHABET, dtype=np.int64))

    def bits_per_byte(self, documents: Iterable[bytes]) -> float:
        """Held-out cross-entropy: -sum log2 p / bytes. NaN when there is no byte."""
        bits, size = 0.0, 0
        for piece in _pieces(documents):
            for document in piece:
                bits -= float(self.log2_probabilities(document).sum())
                size += len(document)
        return bits / size if size else math.nan

    def _interpolate(self, keys_n: Keys) -> Floats:
        if not self._orders:
            raise ValueError("fit the model before asking it")
        p_n = np.full(keys_n.shape, 1.0 / ALPHABET)
        for length, order in enumerate(self._orders, start=1):
            grams_n = keys_n & ((1 << (_BITS * length)) - 1)
            seen_n = _lookup(order.contexts_m, order.gamma_m, grams_n >> _BITS, missing=1.0)
            p_n = _lookup(order.grams_k, order.weight_k, grams_n, missing=0.0) + seen_n * p_n
        return p_n


def _lookup(keys: Keys, values: Floats, wanted_n: Keys, *, missing: float) -> Floats:
    at_n = np.minimum(np.searchsorted(keys, wanted_n), keys.size - 1)
    return np.where(keys[at_n] == wanted_n, values[at_n], missing)


def _smooth(keys: Keys, counts: Counts) -> _Order:
    """Equations (1) and (2) for one order; keys are sorted and distinct."""
    discount_4 = _discounts(counts)
    level_k = np.minimum(counts, 3)
    contexts_m, first_m = np.unique(keys >> _BITS, return_index=True)
    total_m = np.add.reduceat(counts, first_m).astype(np.float64)
    gamma_m = np.add.reduceat(discount_4[level_k], first_m) / total_m
    sizes_m = np.diff(np.append(first_m, keys.size))
    weight_k = (counts - discount_4[level_k]) / np.repeat(total_m, sizes_m)
    return _Order(keys, weight_k, contexts_m.astype(np.int64), gamma_m)


def _discounts(counts: Counts) -> Floats:
    """[0, D1, D2, D3+] from the numbers of n-grams seen once, twice, three and four times."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == times)) for times in (1, 2, 3, 4))
    if n1 and n2 and n3 and n4:
        y = n1 / (n1 + 2 * n2)
        estimate = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 < d <= level for level, d in enumerate(estimate, start=1)):
            return np.array([0.0, *estimate])
    return np.array([0.0, 0.5, 1.0, 1.5])


def _grams(document: bytes, order: int) -> Keys:
    """The key of the n-gram that ends at each byte: [len(document)]."""
    length = len(document)
    symbols = np.full(order - 1 + length, _START, np.int64)
    symbols[order - 1 :] = np.frombuffer(document, np.uint8)
    keys = np.zeros(length, np.int64)
    for position in range(order):
        keys = (keys << _BITS) | symbols[position : position + length]
    return keys


def _pieces(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Documents in groups of about `_CHUNK_BYTES`; one larger than that stands alone."""
    piece: list[bytes] = []
    size = 0
    for document in documents:
        piece.append(document)
        size += len(document)
        if size >= _CHUNK_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _count_chunks(documents: Iterable[bytes], order: int) -> Iterator[tuple[Keys, Counts]]:
    for piece in _pieces(documents):
        keys = np.concatenate([_grams(document, order) for document in piece])
        unique, counts = np.unique(keys, return_counts=True)
        yield unique, counts.astype(np.int64)


def _merge(chunks: Iterable[tuple[Keys, Counts]]) -> tuple[Keys, Counts]:
    """Sums counts over chunks, two at a time, so that memory follows the distinct n-grams."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for more_keys, more_counts in chunks:
        keys, place = np.unique(np.concatenate((keys, more_keys)), return_inverse=True)
        summed = np.zeros(keys.size, np.int64)
        np.add.at(summed, place, np.concatenate((counts, more_counts)))
        counts = summed
    return keys, counts
