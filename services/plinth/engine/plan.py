"""One step of the engine as plain integers: what a runner on any process or rank carries out."""

from __future__ import annotations

from dataclasses import dataclass

# Of a sequence in one group of layers: how many blocks it gave up at the beginning, and the others.
Table = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Row:
    """Consecutive tokens of one sequence.

    `tokens` stand at positions `start`, `start + 1`, …; the last `drafts` of them are proposals.
    All are known ids: what one launch samples is committed before the next is planned.
    `tables` are the sequence's, one for each group of layers. `long`: it turns as long sequences do
    (`ModelConfig.rope_offset`).
    `outputs` positions at the end of the row want a next token (0 for an unfinished prompt).
    `targets` are known next tokens whose log-probability is wanted, the first of them after the
    row's token number `targets_at`.
    """

    sequence: int
    start: int
    tokens: tuple[int, ...]
    tables: tuple[Table, ...]
    outputs: int
    drafts: int = 0
    targets: tuple[int, ...] = ()
    targets_at: int = 0
    long: bool = False


@dataclass(frozen=True)
class Plan:
    """Rows of one launch, in order; never two of one sequence."""

    step: int
    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        """Tokens computed by this plan."""
        return sum(len(row.tokens) for row in self.rows)
