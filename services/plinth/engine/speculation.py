"""Drafts: cheap guesses at the next tokens, verified by the target in one pass.

The target samples every position with that position's own noise (`engine.noise`); a draft is
accepted where it equals what the target samples there. So drafts can only change the speed of an
answer, never its tokens, and the distribution is the target's by construction, not by a
rejection rule. A drafter that samples with the same noise is right more often: the two races
share their luck (coupled sampling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from plinth.engine.blocks import BlockPool
from plinth.engine.plan import Row
from plinth.engine.runner import Runner
from plinth.engine.sampling import sample
from plinth.engine.sequence import Sequence
from plinth.engine.tables import Tables

MAX_DRAFT = 16


class Drafter(Protocol):
    """Proposes tokens for sequences that are about to decode."""

    def propose(self, sequences: Many[tuple[Sequence, int]]) -> list[list[int]]:
        """Up to the given number of tokens for each sequence, possibly none."""
        ...

    def commit(self, sequence: Sequence, before: int, accepted: int) -> None:
        """`accepted` drafts were right for a sequence that had `before` ids."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended."""
        ...


class LookupDrafter:
    """Prompt lookup (Saxena 2023): what followed the last few tokens when they stood before.

    The longest suffix of up to `longest` tokens wins; the index of a sequence grows with it.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.sizes = tuple(range(longest, shortest - 1, -1))
        self._indexes: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {}

    def propose(self, sequences: Many[tuple[Sequence, int]]) -> list[list[int]]:
        return [self._lookup(sequence, count) for sequence, count in sequences]

    def _lookup(self, sequence: Sequence, count: int) -> list[int]:
        ids = sequence.ids
        indexed, index = self._indexes.get(sequence.number, (0, {}))
        # An n-gram is indexed once its continuation is known: the suffix itself is not.
        for end in range(indexed, len(ids)):
            for size in self.sizes:
                if end >= size:
                    index[tuple(ids[end - size : end])] = end
        self._indexes[sequence.number] = (len(ids), index)
        for size in self.sizes:
            if len(ids) > size:
                found = index.get(tuple(ids[-size:]))
                if found is not None:
                    return ids[found : found + count]
        return []

    def commit(self, sequence: Sequence, before: int, accepted: int) -> None:
        """Nothing to do: the index is made from the ids."""

    def forget(self, sequence: Sequence) -> None:
        self._indexes.pop(sequence.number, None)


@dataclass(eq=False)
class _State:
    """What the draft has of a sequence: tables of its own; for how many of the sequence's first ids
    their keys and values are right, and for how many tokens, proposals among them, there are any.
    """

    tables: Tables = field(default_factory=Tables)
    seen: int = 0
    computed: int = 0


class ModelDrafter:
    """A second, smaller model of the same tokens, with its own paged cache and block tables. Either
    may have embeddings beyond the other's: what the draft has none for it has nothing to say about,
    and what the target (of `vocab_size`) has none for is never proposed.

    Its layers may form other groups than the target's, so it has its own pool: sequences that
    draft take blocks from those that have not done so for longest, and who finds none goes on
    without drafts. It catches up on a sequence's tokens before it proposes, and has nothing to say
    past its own context.
    """

    def __init__(self, runner: Runner, vocab_size: int, catch_up: int = 512) -> None:
        self.runner, self.catch_up = runner, catch_up
        self._vocab_size = min(vocab_size, runner.decoder.config.vocab_size)
        cache = runner.cache
        self.pool = BlockPool(
            cache.blocks, cache.block_size, windows=cache.windows, prefix_cache=False
        )
        # By sequence; who drafted last is last.
        self._states: dict[int, _State] = {}

    def propose(self, sequences: Many[tuple[Sequence, int]]) -> list[list[int]]:
        proposals: list[list[int]] = [[] for _ in sequences]
        context = self.runner.decoder.config.context
        ready = self._catch_up([(s, count) for s, count in sequences if len(s.ids) <= context])
        active = [i for i, (sequence, _) in enumerate(sequences) if sequence.number in ready]
        logits = [ready[sequences[i][0].number] for i in active]
        while active:
            rows, still = [], []
            for i, logits_mv in zip(active, logits, strict=True):
                sequence, count = sequences[i]
                if not math.isfinite(float(logits_mv.sum())):
                    continue
                position = sequence.output_position + len(proposals[i])
                choice = [(sequence.request.sampling, position)]
                known_mv = logits_mv[:, : self._vocab_size].contiguous()
                proposals[i].append(sample(known_mv, choice, logprobs=False)[0].id)
                start = len(sequence.ids) + len(proposals[i]) - 1
                if len(proposals[i]) < count and start < context:
                    rows.append(self._row(sequence, start, (proposals[i][-1],), outputs=1))
                    still.append(i)
            active = still
            results = self.runner.run_rows(rows) if rows else []
            logits = [result.logits_mv for result in results if result.logits_mv is not None]
            for row in rows:
                self._states[row.sequence].computed = row.start + 1
        return proposals

    def _catch_up(self, sequences: list[tuple[Sequence, int]]) -> dict[int, Tensor]:
        """Compute what the draft has not seen; logits after the last id of those that are done."""
        rows, budget = [], self.catch_up
        drafting = {sequence.number for sequence, _ in sequences}
        for sequence, count in sequences:
            state = self._states.pop(sequence.number, None) or _State()
            self._states[sequence.number] = state
            start = min(state.seen, len(sequence.ids) - 1)
            take = min(len(sequence.ids) - start, budget)
            if take <= 0:
                break
            done = start + take == len(sequence.ids)
            # All but the last proposal go through the draft.
            reach = start + take + (count - 1 if done else 0)
            reach = min(reach, self.runner.decoder.config.context)
            self.pool.trim(state.tables, start)
            if not self._reserve(state.tables, reach, drafting):
                continue
            tokens = tuple(sequence.ids[start : start + take])
            if max(tokens) >= self._vocab_size:
                continue
            budget -= take
            rows.append(self._row(sequence, start, tokens, outputs=int(done)))
        results = self.runner.run_rows(rows) if rows else []
        for row in rows:
            state = self._states[row.sequence]
            state.seen = state.computed = row.start + len(row.tokens)
        return {
            row.sequence: result.logits_mv
            for row, result in zip(rows, results, strict=True)
            if result.logits_mv is not None
        }

    def _reserve(self, tables: Tables, positions: int, drafting: set[int]) -> bool:
        """Blocks for `positions`, if need be those of sequences that are not drafting now."""
        idle = [number for number in self._states if number not in drafting]
        while not self.pool.reserve(tables, positions):
            if not idle:
                return False
            self._drop(idle.pop(0))
        return True

    def _drop(self, number: int) -> None:
        state = self._states.pop(number, None)
        if state is not None:
            self.pool.release(state.tables.held())

    def _row(self, sequence: Sequence, start: int, tokens: tuple[int, ...], outputs: int) -> Row:
        tables = self._states[sequence.number].tables
        long = self.runner.decoder.config.rope_offset(sequence.request.length) > 0
        return Row(sequence.number, start, tokens, tables.plain(), outputs, long=long)

    def commit(self, sequence: Sequence, before: int, accepted: int) -> None:
        """The keys of accepted drafts are right, where the draft has computed them."""
        state = self._states.get(sequence.number)
        if state is not None and state.seen == before:
            state.seen = min(before + accepted, state.computed)

    def forget(self, sequence: Sequence) -> None:
        self._drop(sequence.number)
