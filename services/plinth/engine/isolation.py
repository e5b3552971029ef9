"""A row that fails takes no other with it.

What a runner gives for a plan is checked row by row. Where a whole plan fails, its rows are run
one by one: the row that can't be computed is told from its neighbours, which get the bits that
they would have had (a row's bits don't depend on its company, and keys and values that are
written twice are written alike).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from plinth.engine.plan import Row
from plinth.engine.runner import RowResult
from plinth.shared.errors import DataLoss, Internal, PlinthError

NON_FINITE = "NON_FINITE_LOGITS"
Run = Callable[[Sequence[Row]], list[RowResult]]
Outcome = RowResult | PlinthError


def run_isolated(
    run: Run, rows: Sequence[Row], vocab_size: int, repeated: Callable[[Exception], None]
) -> list[tuple[Row, Outcome]]:
    """Each row with its result, or with why it has none.

    A row that fails with its drafts is run without them, and comes back so: a wrong guess ends no
    request. repeated: hears why rows had to be run one by one.
    """
    try:
        outcomes = _finite(rows, _checked(run, rows, vocab_size))
    except Exception as error:  # noqa: BLE001 - each row has a second try
        repeated(error)
        outcomes = [run_alone(run, row, vocab_size) for row in rows]
    return [
        run_isolated(run, [_without_drafts(row)], vocab_size, repeated)[0]
        if isinstance(outcome, PlinthError) and row.drafts
        else (row, outcome)
        for row, outcome in zip(rows, outcomes, strict=True)
    ]


def run_alone(run: Run, row: Row, vocab_size: int) -> Outcome:
    """The row's result, or why it has none."""
    try:
        return _finite([row], _checked(run, [row], vocab_size))[0]
    except Exception as error:  # noqa: BLE001 - whatever the model raises ends one request
        return step_failed(error)


def _without_drafts(row: Row) -> Row:
    return replace(row, tokens=row.tokens[: -row.drafts], outputs=1, drafts=0)


def step_failed(error: Exception) -> PlinthError:
    """What the request that `error` belongs to is told; the cause is for the log."""
    if isinstance(error, PlinthError):
        return error
    told = Internal(
        f"the request failed in the engine ({type(error).__name__}); the shard's log has more",
        reason="ENGINE_STEP_FAILED",
    )
    told.__cause__ = error
    return told


def _checked(run: Run, rows: Sequence[Row], vocab_size: int) -> list[RowResult]:
    results = run(rows)
    if len(results) != len(rows):
        raise ValueError(f"{len(results)} results for {len(rows)} rows")
    for row, result in zip(rows, results, strict=True):
        shape = None if result.logits_mv is None else tuple(result.logits_mv.shape)
        wanted = (row.outputs, vocab_size) if row.outputs else None
        if shape != wanted:
            raise ValueError(f"logits of shape {shape}, wanted {wanted}")
        if len(result.scores) != len(row.targets):
            raise ValueError(f"{len(result.scores)} scores for {len(row.targets)} targets")
    return results


def _finite(rows: Sequence[Row], results: list[RowResult]) -> list[Outcome]:
    # A sum is finite only if all its terms are; it can overflow though they are, which is rare.
    logits = [r.logits_mv.sum() for r in results if r.logits_mv is not None]
    sums = iter(torch.stack(logits).tolist() if logits else ())
    outcomes: list[Outcome] = []
    for row, result in zip(rows, results, strict=True):
        finite = result.finite and all(map(math.isfinite, result.scores))
        if result.logits_mv is not None and not math.isfinite(next(sums)):
            finite = finite and bool(torch.isfinite(result.logits_mv).all())
        outcomes.append(result if finite else _not_finite(row))
    return outcomes


def _not_finite(row: Row) -> PlinthError:
    last = row.start + len(row.tokens) - 1
    return DataLoss(
        f"what the model computes for positions {row.start} to {last} is not finite (NaN or "
        "infinite): its weights are damaged, or its arithmetic overflows on this input",
        reason=NON_FINITE,
    )
