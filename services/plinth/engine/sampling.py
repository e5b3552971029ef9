"""From logits to a token: temperature, top-k, top-p, and an exponential race.

The race (argmin of −log u / p, equal in distribution to the Gumbel-max trick) takes one noise
number per token of the vocabulary. The same noise gives the same token from the same logits,
whether they come from decoding, from a prefill or from the verification of a draft.
Legend: m rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plinth.engine.noise import SAMPLE, uniforms
from plinth.engine.request import SampledToken, Sampling
from plinth.kernels.race import exponentials, log_normalisers, logarithms, race


def sample(
    logits_mv: Tensor, choices: Sequence[tuple[Sampling, int]], *, logprobs: bool = True
) -> list[SampledToken]:
    """One token per row; `choices` holds each row's parameters and output position.

    A row gets the same bits in any company. `logprobs=False` leaves log-probabilities at 0
    (drafts do not need them).
    """
    free = [row for row, (sampling, _) in enumerate(choices) if _unfiltered(sampling)]
    rest = sorted(set(range(len(choices))).difference(free))
    tokens: dict[int, SampledToken] = {}
    if free:
        raced = _race(_rows(logits_mv, free), [choices[row] for row in free])
        tokens = dict(zip(free, raced, strict=True))
    if rest:
        logits_rv = _rows(logits_mv, rest)
        normalisers = log_normalisers(logits_rv).tolist() if logprobs else [None] * len(rest)
        for row, logits_v, normaliser in zip(rest, logits_rv, normalisers, strict=True):
            tokens[row] = _one(logits_v, *choices[row], normaliser)
    return [tokens[row] for row in range(len(choices))]


def _rows(logits_mv: Tensor, rows: list[int]) -> Tensor:
    return logits_mv if len(rows) == logits_mv.shape[0] else logits_mv[rows]


def _unfiltered(sampling: Sampling) -> bool:
    """Whether the whole vocabulary may be drawn from, and nobody asks what else was likely."""
    return (
        sampling.temperature > 0
        and not sampling.top_k
        and sampling.top_p >= 1
        and not sampling.top_logprobs
    )


def _race(logits_mv: Tensor, choices: Sequence[tuple[Sampling, int]]) -> list[SampledToken]:
    """`draw` for rows without filters, all at once, by the C++ kernel."""
    heats = np.array([sampling.temperature for sampling, _ in choices], dtype=np.float64)
    keys = np.array(
        [(sampling.seed, sampling.sample_index, position) for sampling, position in choices],
        dtype=np.uint64,
    )
    seeds, indices, positions = (np.ascontiguousarray(column) for column in keys.T)
    raced = race(logits_mv.float().cpu(), heats, seeds, indices, positions, SAMPLE)
    return [SampledToken(*token) for token in zip(*raced, strict=True)]


def _one(
    logits_v: Tensor, sampling: Sampling, position: int, normaliser: float | None
) -> SampledToken:
    """A greedy or filtered row; no log-probabilities without its normaliser."""
    logprob = None
    if sampling.temperature > 0:
        chosen, logprob = draw(logits_v.cpu().numpy(), sampling, position)
    else:
        chosen = int(logits_v.argmax())
    raw = float(logits_v[chosen]) - normaliser if normaliser is not None else 0.0
    top: tuple[tuple[int, float], ...] = ()
    if normaliser is not None and sampling.top_logprobs:
        values, ids = logits_v.topk(min(sampling.top_logprobs, len(logits_v)))
        top = tuple(
            (token, value - normaliser)
            for token, value in zip(ids.tolist(), values.tolist(), strict=True)
        )
    return SampledToken(chosen, raw if logprob is None else logprob, raw, top)


def draw(logits_v: NDArray[np.float32], sampling: Sampling, position: int) -> tuple[int, float]:
    """A token from the filtered distribution, and its log-probability there."""
    kept, probabilities = distribution(logits_v, sampling)
    noise = uniforms(sampling.seed, sampling.sample_index, position, logits_v.shape[0])
    with np.errstate(divide="ignore", over="ignore"):
        winner = int(np.argmin(-logarithms(noise[kept]) / probabilities))
    return int(kept[winner]), float(logarithms(probabilities[winner : winner + 1])[0])


def distribution(
    logits_v: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that may be drawn, in ascending order, and their probabilities (they sum to 1).

    Temperature first, then top-k, then top-p over what is left (the order of transformers).
    Ties at the border of top-k are kept out by id, so that exactly k remain.
    """
    # The best is 0 whatever the temperature, so that none is too small.
    with np.errstate(over="ignore"):
        scaled = (logits_v.astype(np.float64) - float(logits_v.max())) / sampling.temperature
    kept = np.arange(scaled.shape[0])
    if 0 < sampling.top_k < scaled.shape[0]:
        kept = np.sort(np.lexsort((kept, -scaled))[: sampling.top_k])
    weights = exponentials(scaled[kept])
    probabilities = weights / weights.sum()
    if sampling.top_p < 1:
        order = np.lexsort((kept, -probabilities))
        mass_before = np.cumsum(probabilities[order]) - probabilities[order]
        nucleus = np.sort(order[mass_before < sampling.top_p])
        kept, probabilities = kept[nucleus], probabilities[nucleus]
        probabilities = probabilities / probabilities.sum()
    # A weight that underflowed cannot be drawn; keeping it would divide by zero.
    possible = probabilities > 0
    return kept[possible], probabilities[possible]
