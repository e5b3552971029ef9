"""Intervals of what is counted."""

from __future__ import annotations


def wilson(wins: float, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): honest for few of them and near 0 or 1. `wins` may
    hold halves, for ties."""
    if not of:
        return 0.0, 1.0
    z, share = 1.959963984540054, wins / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
