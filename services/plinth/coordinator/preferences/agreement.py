"""Krippendorff's alpha: how far judges agree beyond what chance would give.

    alpha = 1 - D_o / D_e

with the observed and the expected disagreement over the coincidence matrix of values (K.
Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011; the steps below are its own).
Any number of judges, values missing at will.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Metric = Literal["nominal", "ordinal"]


def krippendorff_alpha(units: Sequence[Sequence[int]], metric: Metric) -> float | None:
    """`units`: for each thing judged, the values it was given, in any order. None: no unit has two
    values, or all values are the same, so that agreement has no meaning."""
    # A. Units with one value can't disagree.
    paired = [unit for unit in units if len(unit) >= 2]
    values = sorted({value for unit in paired for value in unit})
    if len(values) < 2:
        return None
    # B. The coincidence matrix: each unit's ordered pairs, weighted by 1 / (m_u - 1).
    at = {value: index for index, value in enumerate(values)}
    coincidences_vv = np.zeros((len(values), len(values)))
    for unit in paired:
        counts_v = np.bincount([at[value] for value in unit], minlength=len(values))
        pairs_vv = np.outer(counts_v, counts_v) - np.diag(counts_v)
        coincidences_vv += pairs_vv / (len(unit) - 1)
    # C. How often each value occurs.
    marginals_v = coincidences_vv.sum(axis=1)
    total = float(marginals_v.sum())
    # D. Disagreement by the metric's squared differences.
    difference_vv = _differences(marginals_v, metric)
    observed = float((coincidences_vv * difference_vv).sum())
    expected = float((np.outer(marginals_v, marginals_v) * difference_vv).sum()) / (total - 1)
    return 1 - observed / expected


def _differences(marginals_v: npt.NDArray[np.float64], metric: Metric) -> npt.NDArray[np.float64]:
    """Squared: 1 for any two that differ; or the number of values that lie between their ranks."""
    size = len(marginals_v)
    if metric == "nominal":
        return np.ones((size, size)) - np.eye(size)
    # sum of n_g for g from c to k, less half of both ends: a distance between mean ranks.
    ranks_v = np.cumsum(marginals_v) - marginals_v / 2
    difference: npt.NDArray[np.float64] = (ranks_v[:, None] - ranks_v[None, :]) ** 2
    return difference
