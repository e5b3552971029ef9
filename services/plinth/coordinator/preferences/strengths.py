"""Bradley-Terry: how strong is each model, from who was preferred to whom?

    P(i is preferred to j) = 1 / (1 + exp(s_j - s_i))

The s that make the comparisons most likely, by Newton's method; the mean of s is 0, since only
differences mean anything. A tie is half a win for each side. Intervals come from the inverse of
the Fisher information (s is normal around the truth for many comparisons); those of one ranking
are taken as independent, which they are not quite. R. Bradley and M. Terry, "Rank Analysis of
Incomplete Block Designs", 1952; D. Hunter, "MM Algorithms for Generalized Bradley-Terry Models",
2004, whose assumption 1 says when a finite estimate exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Z = 1.959963984540054  # of a 95 % interval
_STEPS = 200
_CLOSE = 1e-10


@dataclass(frozen=True)
class Strengths:
    """Log-strengths with the ends of their 95 % intervals, in the order of the models.

    shrunk: no finite estimate exists, so each model was given half a win and half a loss against
    an imagined one of strength 0.
    """

    strengths: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    shrunk: bool


def bradley_terry(wins: Sequence[Sequence[float]]) -> Strengths:
    """`wins[i][j]`: how often i was preferred to j, halves for ties; the diagonal is not read."""
    wins_nn = np.array(wins, dtype=np.float64)
    np.fill_diagonal(wins_nn, 0.0)
    shrunk = not _connected(wins_nn)
    strengths_n = _fit(wins_nn, 0.5 if shrunk else 0.0)
    spread_n = Z * np.sqrt(np.diag(_covariance(wins_nn, strengths_n, 0.5 if shrunk else 0.0)))
    return Strengths(
        tuple(strengths_n.tolist()),
        tuple((strengths_n - spread_n).tolist()),
        tuple((strengths_n + spread_n).tolist()),
        shrunk,
    )


def _connected(wins_nn: Matrix) -> bool:
    """Whether from each model a chain of wins leads to each other one: else some strengths would
    run off to infinity."""
    size = len(wins_nn)
    reach_nn = (wins_nn > 0) | np.eye(size, dtype=bool)
    for middle in range(size):
        reach_nn |= np.outer(reach_nn[:, middle], reach_nn[middle])
    return bool(reach_nn.all())


def _fit(wins_nn: Matrix, prior: float) -> Matrix:
    """Newton's method on the log-likelihood, with the step halved until it goes up."""
    strengths_n = np.zeros(len(wins_nn))
    value = _log_likelihood(wins_nn, strengths_n, prior)
    for _ in range(_STEPS):
        won_n = wins_nn.sum(axis=1) + prior
        chance_nn = _sigmoid(strengths_n[:, None] - strengths_n[None, :])
        games_nn = wins_nn + wins_nn.T
        expected_n = (games_nn * chance_nn).sum(axis=1) + 2 * prior * _sigmoid(strengths_n)
        gradient_n = won_n - expected_n
        step_n = np.linalg.pinv(_information(wins_nn, strengths_n, prior)) @ gradient_n
        if prior == 0:
            step_n -= step_n.mean()
        while True:
            following = _log_likelihood(wins_nn, strengths_n + step_n, prior)
            if following >= value or np.abs(step_n).max() < _CLOSE:
                break
            step_n = step_n / 2
        strengths_n, value = strengths_n + step_n, following
        if np.abs(step_n).max() < _CLOSE:
            break
    centred_n: Matrix = strengths_n - strengths_n.mean()
    return centred_n


def _log_likelihood(wins_nn: Matrix, strengths_n: Matrix, prior: float) -> float:
    lead_nn = strengths_n[:, None] - strengths_n[None, :]
    fit = -(wins_nn * np.logaddexp(0, -lead_nn)).sum()
    ends = np.logaddexp(0, -strengths_n) + np.logaddexp(0, strengths_n)
    return float(fit - prior * ends.sum())


def _information(wins_nn: Matrix, strengths_n: Matrix, prior: float) -> Matrix:
    """Fisher information: a weighted Laplacian of the graph of comparisons."""
    chance_nn = _sigmoid(strengths_n[:, None] - strengths_n[None, :])
    weight_nn = (wins_nn + wins_nn.T) * chance_nn * (1 - chance_nn)
    own_n = _sigmoid(strengths_n)
    return np.diag(weight_nn.sum(axis=1) + 2 * prior * own_n * (1 - own_n)) - weight_nn


def _covariance(wins_nn: Matrix, strengths_n: Matrix, prior: float) -> Matrix:
    """Of the strengths with their mean taken off."""
    size = len(strengths_n)
    centre_nn = np.eye(size) - 1 / size
    covariance: Matrix = (
        centre_nn @ np.linalg.pinv(_information(wins_nn, strengths_n, prior)) @ centre_nn
    )
    return covariance


def _sigmoid(x: Matrix) -> Matrix:
    share: Matrix = np.exp(-np.logaddexp(0, -x))
    return share
