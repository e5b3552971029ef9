"""Which tokens are computed next: continuous batching, chunked prefill, preemption.

Pure Python over integers. Knows no model and no clock; `schedule` gives a Plan, `commit` takes
what came of it. One step is: the running sequences in order of urgency, each one's pending
tokens (a chunk of its prompt, or its last token and drafts); then waiting ones while tokens,
places and blocks are left. Where blocks run out, the least urgent sequence gives up its own and
computes them again later: with kernels whose rows are exact, to the same bits.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plinth.engine.blocks import BlockPool
from plinth.engine.plan import Plan, Row
from plinth.engine.sequence import Sequence
from plinth.shared.errors import ResourceExhausted


@dataclass(frozen=True)
class Limits:
    """Tokens per step, sequences running and waiting, and positions of one sequence."""

    batch_tokens: int = 512
    running: int = 64
    waiting: int = 256
    positions: int = 2048


class Scheduler:
    """Holds every sequence from `add` until it is finished or removed."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self._step = 0
        self._emptied: list[int] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ResourceExhausted when the queue is full."""
        if len(self.waiting) >= self.limits.waiting:
            raise ResourceExhausted(
                f"the queue is full: {len(self.waiting)} requests wait; try again later",
                reason="queue_full",
                retry_after_s=1.0,
            )
        bisect.insort(self.waiting, sequence, key=lambda s: s.urgency)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it stands, and free its blocks at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def sequences(self) -> Iterator[Sequence]:
        """All that are here."""
        yield from self.running
        yield from self.waiting

    def take_emptied(self) -> list[int]:
        """Blocks that hold nothing since the last call (tests poison them)."""
        emptied, self._emptied = self._emptied, []
        return emptied

    def schedule(self) -> Plan:
        """The next step. An empty plan means that there is nothing to do."""
        self._step += 1
        budget = self.limits.batch_tokens
        rows: list[Row] = []
        index = 0
        while index < len(self.running) and budget:
            sequence = self.running[index]
            row = self._row(sequence, budget)
            if row is None:
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
                continue
            rows.append(row)
            budget -= len(row.tokens)
            index += 1
        self._admit(rows, budget)
        return Plan(self._step, tuple(rows))

    def _admit(self, rows: list[Row], budget: int) -> None:
        """Add rows of waiting sequences that find a place."""
        while self.waiting and budget and len(self.running) < self.limits.running:
            sequence = self.waiting[0]
            self._reuse(sequence)
            row = self._row(sequence, budget)
            if row is None:
                self._free(sequence)
                if not self._make_way(sequence, rows):
                    break
                continue
            self.waiting.pop(0)
            bisect.insort(self.running, sequence, key=lambda s: s.urgency)
            rows.append(row)
            budget -= len(row.tokens)

    def _make_way(self, sequence: Sequence, rows: list[Row]) -> bool:
        """Preempt one running sequence of lower priority that is not in this step's plan."""
        if not self.running:
            return False
        victim = self.running[-1]
        planned = any(row.sequence == victim.number for row in rows)
        if planned or victim.request.priority >= sequence.request.priority:
            return False
        self._preempt(victim)
        return True

    def _reuse(self, sequence: Sequence) -> None:
        """Take what the prefix cache holds of it; at least one token is left to compute."""
        limit = len(sequence.ids) - 1
        if sequence.request.score_from is not None:
            limit = min(limit, sequence.request.score_from - 1)
            sequence.scores.clear()
        blocks, keys = self.pool.match(sequence.salt, sequence.ids, limit)
        sequence.blocks, sequence.block_keys = blocks, keys
        sequence.computed = len(blocks) * self.pool.block_size
        if not sequence.admitted:
            sequence.usage.cached = sequence.computed

    def _row(self, sequence: Sequence, budget: int) -> Row | None:
        """The sequence's part of this step, its blocks held; None when there are too few."""
        take = min(sequence.pending, budget)
        drafts = sequence.drafts if take == sequence.pending else []
        drafts = drafts[: max(0, min(budget - take, self.limits.positions - len(sequence.ids)))]
        if drafts and not self.reserve(sequence, sequence.computed + take + len(drafts)):
            drafts = []
        if not self.reserve(sequence, sequence.computed + take):
            return None
        sequence.admitted = True
        start = sequence.computed
        done = start + take == len(sequence.ids)
        return Row(
            sequence=sequence.number,
            start=start,
            tokens=(*sequence.ids[start : start + take], *drafts),
            blocks=tuple(sequence.blocks),
            outputs=0 if sequence.scoring or not done else 1 + len(drafts),
            drafts=len(drafts),
            **_targets(sequence, start, take),
        )

    def reserve(self, sequence: Sequence, positions: int) -> bool:
        """Make the block table reach `positions`; False (and no change) without enough blocks."""
        missing = -(-positions // self.pool.block_size) - len(sequence.blocks)
        if missing > 0:
            blocks = self.pool.allocate(missing)
            if blocks is None:
                return False
            sequence.blocks += blocks
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._free(sequence)
        bisect.insort(self.waiting, sequence, key=lambda s: s.urgency)

    def _free(self, sequence: Sequence) -> None:
        self._emptied += self.pool.release(sequence.blocks)
        sequence.blocks, sequence.block_keys = [], []
        sequence.computed = 0
        sequence.drafts = []
        sequence.epoch += 1

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Take note that keys and values exist for the first `computed` ids.

        Seals the blocks that became full and rolls back those that only rejected drafts used.
        """
        sequence.computed = computed
        size = self.pool.block_size
        for index in range(len(sequence.block_keys), computed // size):
            parent = sequence.block_keys[-1] if index else self.pool.root(sequence.salt)
            tokens = sequence.ids[index * size : (index + 1) * size]
            sequence.block_keys.append(self.pool.seal(sequence.blocks[index], parent, tokens))
        keep = -(-max(computed, 1) // size)
        if len(sequence.blocks) > keep:
            self._emptied += self.pool.release(sequence.blocks[keep:])
            del sequence.blocks[keep:]


def _targets(sequence: Sequence, start: int, take: int) -> dict[str, Any]:
    """The known next tokens that a scored sequence wants judged in this chunk."""
    if sequence.request.score_from is None:
        return {}
    first = max(sequence.request.score_from - 1, start)
    return {
        "targets": tuple(sequence.ids[first + 1 : start + take + 1]),
        "targets_at": first - start,
    }
