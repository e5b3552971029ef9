"""One step of the engine as plain integers: what a runner on any process or rank carries out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Consecutive tokens of one sequence.

    `tokens` stand at positions `start`, `start + 1`, …; the last `drafts` of them are proposals.
    `outputs` positions at the end of the row want a next token (0 for an unfinished prompt).
    `targets` are known next tokens whose log-probability is wanted, the first of them after the
    row's token number `targets_at`.
    """

    sequence: int
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    outputs: int
    drafts: int = 0
    targets: tuple[int, ...] = ()
    targets_at: int = 0


@dataclass(frozen=True)
class Plan:
    """Rows of one launch, in order; never two of one sequence."""

    step: int
    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        """Tokens computed by this plan."""
        return sum(len(row.tokens) for row in self.rows)
