"""From a step's logits to its tokens: the first of every row together, then drafts one by one.

A draft is right when the target, with its own noise, draws the same token at that place: so drafts
change how fast an answer comes, and never what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Many

import torch

from plinth.engine.plan import Row
from plinth.engine.request import Finish, SampledToken
from plinth.engine.runner import RowResult
from plinth.engine.sampling import sample
from plinth.engine.sequence import Sequence


def first_tokens(
    results: Many[tuple[Row, RowResult]], sequences: Mapping[int, Sequence]
) -> dict[int, SampledToken]:
    """The first token of every row that has one, by the number of its sequence; a sequence that
    was aborted since it was planned has none."""
    logits, choices, numbers = [], [], []
    for row, result in results:
        sequence = sequences.get(row.sequence)
        if sequence is None or result.logits_mv is None:
            continue
        numbers.append(row.sequence)
        logits.append(result.logits_mv[:1])
        choices.append((sequence.request.sampling, sequence.output_position))
    if not numbers:
        return {}
    logits_mv = logits[0] if len(logits) == 1 else torch.cat(logits)
    return dict(zip(numbers, sample(logits_mv, choices), strict=True))


def verify(
    sequence: Sequence, row: Row, result: RowResult, first: SampledToken, positions: int
) -> tuple[tuple[SampledToken, ...], Finish | None]:
    """The row's tokens as far as its drafts agree, appended to the sequence; and why it ends.

    `first` is the token at the row's first output; `positions` is the engine's limit.
    """
    sampling = sequence.request.sampling
    drafts = row.tokens[len(row.tokens) - row.drafts :]
    assert result.logits_mv is not None
    tokens: list[SampledToken] = []
    for i in range(row.outputs):
        token = first
        if i:
            choice = [(sampling, sequence.output_position)]
            token = sample(result.logits_mv[i : i + 1], choice)[0]
        _check(token, result.logits_mv.shape[1])
        if token.id in sampling.stop_ids:
            return (*tokens, token) if sampling.keep_stop else tuple(tokens), Finish.STOP
        tokens.append(token)
        sequence.ids.append(token.id)
        if sequence.allowance(positions) <= 0:
            return tuple(tokens), Finish.LENGTH
        if i < len(drafts) and drafts[i] != token.id:
            break
    return tuple(tokens), None


def _check(token: SampledToken, vocab_size: int) -> None:
    if not 0 <= token.id < vocab_size:
        raise ValueError(f"sampled token {token.id} of a vocabulary of {vocab_size}")
    if not (math.isfinite(token.logprob) and math.isfinite(token.raw_logprob)):
        raise ValueError(f"sampled token {token.id} has log-probability {token.logprob}")
