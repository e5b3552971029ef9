"""Which tokens are computed next: continuous batching, chunked prefill, preemption.

Pure Python over integers. Knows no model and no clock; `schedule` gives a Plan. One step is:

1. every running sequence that decodes gets its token (and drafts, where tokens are left);
2. waiting sequences are admitted while places and blocks are left. One of higher priority than a
   running one takes that one's place and blocks if it must;
3. prompts share the tokens that are left: `prompt_shares` says how.

Where blocks run out, the least urgent sequence gives up its own and computes them again later:
with kernels whose rows are exact, to the same bits. The least urgent one itself waits, and keeps
what it has, until blocks are free or somebody more urgent needs them.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plinth.engine.blocks import BlockPool
from plinth.engine.plan import Plan, Row
from plinth.engine.prompt_shares import PromptShares
from plinth.engine.sequence import Sequence
from plinth.engine.tables import Tables
from plinth.shared.errors import ResourceExhausted


@dataclass(frozen=True)
class Limits:
    """Tokens per step, sequences running and waiting, and positions of one sequence.

    `priority_aging`: after how many steps of waiting a request counts as one priority higher, so
    that the lowest waits for a bounded time; 0: never, a higher priority always goes first.
    """

    batch_tokens: int = 512
    running: int = 64
    waiting: int = 256
    positions: int = 2048
    priority_aging: int = 0


class Scheduler:
    """Holds every sequence from `add` until it is finished or removed."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        # Each decodes in every step: half of its tokens are left to prompts.
        self._places = min(limits.running, max(1, limits.batch_tokens // 2))
        # Ranks that are so far apart are of different priority; nearer ones of different age.
        self._level = max(1, limits.priority_aging)
        self._shares = PromptShares(limits.batch_tokens)
        self.running: list[Sequence] = []  # the most urgent first, as in `waiting`
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self._step = 0
        self._preempted: tuple[int, int] | None = None  # the most urgent of this step
        self.at: Sequence | None = None  # the one being planned, when `schedule` raised
        self._emptied: list[int] = []

    def add(self, sequence: Sequence) -> Sequence | None:
        """Queue a sequence. Raises ResourceExhausted when as many as may wait go before it: those
        of lower priority don't keep it out.

        Twice as many may wait in all; returns the least urgent, if it has to go for this one.
        """
        aging, priority = self.limits.priority_aging, sequence.request.priority
        level = self._step - priority * aging if aging else -priority
        sequence.rank = (level, sequence.number)
        before = bisect.bisect(self.waiting, sequence.rank, key=_rank)
        free = max(0, self._places - len(self.running))
        if before >= self.limits.waiting + free:
            raise ResourceExhausted(
                f"the queue is full: {before} requests wait; try again later",
                reason="queue_full",
                retry_after_s=1.0,
            )
        self.waiting.insert(before, sequence)
        if len(self.waiting) <= 2 * self.limits.waiting + free:
            return None
        return next((s for s in reversed(self.waiting) if not s.admitted), None)

    def remove(self, sequence: Sequence, *, damaged: bool = False) -> None:
        """Forget a sequence, wherever it stands, and free its blocks at once.

        damaged: nobody else may find what it computed in the prefix cache.
        """
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        if damaged:
            self.pool.unseal(sequence.tables.held())
        self._free(sequence)

    def release(self, blocks: list[int]) -> None:
        """Give up blocks that no sequence has."""
        self._emptied += self.pool.release(blocks)

    def sequences(self) -> Iterator[Sequence]:
        """All that are here."""
        yield from self.running
        yield from self.waiting

    def take_emptied(self) -> list[int]:
        """Blocks that hold nothing since the last call (tests poison them)."""
        emptied, self._emptied = self._emptied, []
        return emptied

    # -- one step ---------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """The next step. An empty plan means that there is nothing to do."""
        self._step += 1
        self._preempted, self.at = None, None
        rows: dict[int, Row] = {}
        stalled = self._decode(rows)
        self._admit(rows)
        self._compute_prompts(rows, stalled)
        if not rows and self._shares.long_waits:  # there are no blocks for the short ones
            self._compute_prompts(rows, stalled)
        return Plan(self._step, tuple(rows.values()))

    def _decode(self, rows: dict[int, Row]) -> set[int]:
        """A row for every sequence that has one token to compute; those without a block for it."""
        drafts_left = self.limits.batch_tokens - len(self.running) - bool(self.waiting)
        stalled: set[int] = set()
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            index += 1
            if sequence.pending == 1:
                row = self._plan(sequence, 1, rows, drafts_left)
                if row is None:
                    stalled.add(sequence.number)
                else:
                    drafts_left -= row.drafts
        return stalled

    def _admit(self, rows: dict[int, Row]) -> None:
        """Take sequences out of the queue, in its order, while there is room for them."""
        while self.waiting:
            self.at = sequence = self.waiting[0]
            if self._preempted and sequence.rank >= self._preempted:
                return  # or who has just given up blocks would take them again
            victims = self._victims(sequence)
            if victims is None:
                return
            for victim in victims:
                self._preempt(victim, rows)
            self.waiting.remove(sequence)
            self._reuse(sequence)
            bisect.insort(self.running, sequence, key=_rank)

    def _victims(self, sequence: Sequence) -> list[Sequence] | None:
        """Who must be preempted so that a waiting sequence may run: nobody, or the least urgent of
        lower priority; None where even that would not do.

        Whole blocks are taken from the prefix cache, so the first token needs a block of its own
        in each group. Those that are not of lower priority are left as many to go on with.
        """
        places, first = self._places - len(self.running), self.pool.groups
        if places > 0 and self.pool.available >= first * (self._peers(sequence) + 1):
            return []
        victims: list[Sequence] = []
        held: Counter[int] = Counter()
        freed = 0
        for victim in reversed(self.running):
            if not self._outranks(sequence, victim):
                return None
            victims.append(victim)
            for block in victim.tables.held():
                held[block] += 1
                freed += held[block] == self.pool.holders(block)
            if places + len(victims) > 0 and self.pool.available + freed >= first:
                return victims
        return None

    def _compute_prompts(self, rows: dict[int, Row], stalled: set[int]) -> None:
        """Rows for the prompts that run, of the tokens that are left."""
        left = self.limits.batch_tokens - sum(len(row.tokens) for row in rows.values())
        prompts = [s for s in self.running if s.number not in rows and s.number not in stalled]
        for sequence, take in zip(prompts, self._shares.of(prompts, left), strict=True):
            if take and sequence in self.running:  # not preempted by one before it
                self._plan(sequence, take, rows)

    def _plan(
        self, sequence: Sequence, take: int, rows: dict[int, Row], drafts_left: int = 0
    ) -> Row | None:
        """Plan the sequence's next `take` tokens, or as many as blocks are found for; None if
        there are none even for one."""
        self.at = sequence
        take = self._hold(sequence, take, rows)
        if not take:
            return None
        drafts = sequence.drafts if take == sequence.pending else []
        drafts = drafts[: max(0, min(drafts_left, self.limits.positions - len(sequence.ids)))]
        if drafts and not self._reserve(sequence, sequence.computed + take + len(drafts)):
            drafts = []
        sequence.admitted = True
        start = sequence.computed
        done = start + take == len(sequence.ids)
        row = rows[sequence.number] = Row(
            sequence=sequence.number,
            start=start,
            tokens=(*sequence.ids[start : start + take], *drafts),
            tables=sequence.tables.plain(),
            outputs=0 if sequence.scoring or not done else 1 + len(drafts),
            drafts=len(drafts),
            long=sequence.long,
            **_targets(sequence, start, take),
        )
        return row

    # -- blocks -----------------------------------------------------------------------------

    def _hold(self, sequence: Sequence, take: int, rows: dict[int, Row]) -> int:
        """Find blocks for the next `take` tokens; how many of them there are blocks for.

        Whoever is less urgent gives up its own for the first of them, whoever is of lower priority
        for all; it is in this step's plan no more. What a prompt takes beyond the first leaves a
        block of each group to each that is not of lower priority.
        """
        while not self._reserve(sequence, sequence.computed + 1):
            victim = self.running[-1]
            if victim is sequence:
                return 0
            self._preempt(victim, rows)
        if take == 1:
            return 1
        tables, pool = sequence.tables, self.pool
        while pool.missing(tables, sequence.computed + take) > pool.available:
            victim = self.running[-1]
            if not self._outranks(sequence, victim):
                break
            self._preempt(victim, rows)
        spare = pool.groups * (self._peers(sequence) - 1)
        reach = tables.reach + max(0, pool.available - spare) // pool.groups
        take = min(take, reach * pool.block_size - sequence.computed)
        self._reserve(sequence, sequence.computed + take)
        return take

    def _peers(self, sequence: Sequence) -> int:
        """Running sequences (itself among them, if it runs) that are not of lower priority."""
        return bisect.bisect(self.running, (sequence.rank[0] + self._level, 0), key=_rank)

    def _outranks(self, sequence: Sequence, other: Sequence) -> bool:
        """Whether it is of higher priority, and not only older."""
        return other.rank[0] - sequence.rank[0] >= self._level

    def reserve_spare(self, sequence: Sequence, positions: int) -> bool:
        """Make its tables reach `positions`, where a block of each group is left for each running
        sequence; False (and no change) where there are too few."""
        spare = self.pool.available - self.pool.groups * len(self.running)
        missing = self.pool.missing(sequence.tables, positions)
        return missing <= spare and self._reserve(sequence, positions)

    def _reserve(self, sequence: Sequence, positions: int) -> bool:
        return self.pool.reserve(sequence.tables, positions)

    def _reuse(self, sequence: Sequence) -> None:
        """Take what the prefix cache holds of it; at least one token is left to compute."""
        limit = len(sequence.ids) - 1
        if sequence.request.score_from is not None:
            limit = min(limit, sequence.request.score_from - 1)
            sequence.scores.clear()
        tables, keys = self.pool.match(sequence.salt, sequence.ids, limit)
        sequence.tables, sequence.block_keys = tables, keys
        sequence.computed = tables.reach * self.pool.block_size
        if not sequence.admitted:
            sequence.usage.cached = sequence.computed

    def _preempt(self, sequence: Sequence, rows: dict[int, Row]) -> None:
        self.preemptions += 1
        self._preempted = min(self._preempted or sequence.rank, sequence.rank)
        rows.pop(sequence.number, None)
        self.running.remove(sequence)
        self._free(sequence)
        bisect.insort(self.waiting, sequence, key=_rank)

    def _free(self, sequence: Sequence) -> None:
        self.release(sequence.tables.held())
        sequence.tables, sequence.block_keys = Tables(), []
        sequence.computed = 0
        sequence.drafts = []

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Take note that keys and values exist for the first `computed` ids.

        Seals the blocks that became full. Gives up those that only rejected drafts used, and those
        that no window reaches back to.
        """
        sequence.computed = computed
        size, tables = self.pool.block_size, sequence.tables
        for number in range(len(sequence.block_keys), computed // size):
            parent = sequence.block_keys[-1] if number else self.pool.root(sequence.salt)
            tokens = sequence.ids[number * size : (number + 1) * size]
            sequence.block_keys.append(self.pool.seal(tables.of(number), parent, tokens))
        self._emptied += self.pool.trim(tables, computed)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


def _targets(sequence: Sequence, start: int, take: int) -> dict[str, Any]:
    """The known next tokens that a scored sequence wants judged in this chunk."""
    if sequence.request.score_from is None:
        return {}
    first = max(sequence.request.score_from - 1, start)
    return {
        "targets": tuple(sequence.ids[first + 1 : start + take + 1]),
        "targets_at": first - start,
    }
