"""Documents into sequences of a fixed length, best fit, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterable


def best_fit(lengths: Iterable[tuple[int, int]], room: int) -> list[list[int]]:
    """Pack (item, length) pairs, each length at most `room`, into bins of `room`.

    Each item goes to the open bin with the least space that still holds it (Johnson 1973).
    Open bins are found by space through one integer of bits, so that an item costs O(room / 64).
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}
    present = 0  # bit s is set where a bin with space s is open
    for item, length in lengths:
        if not 0 < length <= room:
            raise ValueError(f"item {item} of length {length} does not fit {room}")
        fitting = present >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            number = by_space[space].pop()
            if not by_space[space]:
                present &= ~(1 << space)
        else:
            space, number = room, len(bins)
            bins.append([])
        bins[number].append(item)
        left = space - length
        if left:
            by_space.setdefault(left, []).append(number)
            present |= 1 << left
    return bins
