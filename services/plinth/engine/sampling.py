"""From logits to a token: temperature, top-k, top-p, and an exponential race.

The race (argmin of −log u / p, equal in distribution to the Gumbel-max trick) takes one noise
number per token of the vocabulary. The same noise gives the same token from the same logits,
whether they come from decoding, from a prefill or from the verification of a draft.
Legend: m rows, v vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plinth.engine.noise import uniforms
from plinth.engine.request import SampledToken, Sampling


def sample(
    logits_mv: Tensor, choices: list[tuple[Sampling, int]], *, logprobs: bool = True
) -> list[SampledToken]:
    """One token per row; `choices` holds each row's parameters and output position.

    `logprobs=False` leaves log-probabilities at 0 (drafts do not need them).
    """
    greedy = logits_mv.argmax(dim=-1).tolist()
    normalisers = logits_mv.logsumexp(dim=-1).tolist() if logprobs else [0.0] * len(choices)
    tokens = []
    for row, (sampling, position) in enumerate(choices):
        chosen, logprob = greedy[row], None
        if sampling.temperature > 0:
            chosen, logprob = draw(logits_mv[row].cpu().numpy(), sampling, position)
        raw = float(logits_mv[row, chosen]) - normalisers[row] if logprobs else 0.0
        top: tuple[tuple[int, float], ...] = ()
        if logprobs and sampling.top_logprobs:
            values, ids = logits_mv[row].topk(min(sampling.top_logprobs, logits_mv.shape[1]))
            top = tuple(
                (token, value - normalisers[row])
                for token, value in zip(ids.tolist(), values.tolist(), strict=True)
            )
        tokens.append(SampledToken(chosen, raw if logprob is None else logprob, raw, top))
    return tokens


def draw(logits_v: NDArray[np.float32], sampling: Sampling, position: int) -> tuple[int, float]:
    """A token from the filtered distribution, and its log-probability there."""
    kept, probabilities = distribution(logits_v, sampling)
    noise = uniforms(sampling.seed, sampling.sample_index, position, logits_v.shape[0])
    with np.errstate(divide="ignore"):
        winner = int(np.argmin(-np.log(noise[kept]) / probabilities))
    return int(kept[winner]), float(np.log(probabilities[winner]))


def distribution(
    logits_v: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that may be drawn, in ascending order, and their probabilities (they sum to 1).

    Temperature first, then top-k, then top-p over what is left (the order of transformers).
    Ties at the border of top-k are kept out by id, so that exactly k remain.
    """
    scaled = logits_v.astype(np.float64) / sampling.temperature
    kept = np.arange(scaled.shape[0])
    if 0 < sampling.top_k < scaled.shape[0]:
        kept = np.sort(np.lexsort((kept, -scaled))[: sampling.top_k])
    weights = np.exp(scaled[kept] - scaled[kept].max())
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
