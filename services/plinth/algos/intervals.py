"""Intervals of shares, without torch: gates and reports use the same ones."""

from __future__ import annotations

_Z = 1.959963984540054  # 97.5th percentile of the normal distribution


def wilson(wins: float, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): honest for few pairs and near 0 or 1."""
    if not of:
        return 0.0, 1.0
    share = wins / of
    middle = (share + _Z * _Z / (2 * of)) / (1 + _Z * _Z / of)
    half = _Z / (1 + _Z * _Z / of) * (share * (1 - share) / of + _Z * _Z / (4 * of * of)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
