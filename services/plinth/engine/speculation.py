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
from typing import Protocol

from torch import Tensor

from plinth.engine.plan import Row
from plinth.engine.runner import Runner
from plinth.engine.sampling import sample
from plinth.engine.sequence import Sequence

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


class ModelDrafter:
    """A second, smaller model of the same vocabulary, with its own paged cache.

    Its cache has the target's blocks: block b holds the draft's keys for the positions for which
    the target's block b holds the target's, so that one block table serves both. It catches up
    on a sequence's tokens before it proposes, and has nothing to say past its own context.
    """

    def __init__(self, runner: Runner, catch_up: int = 512) -> None:
        self.runner, self.catch_up = runner, catch_up
        # By sequence: the epoch of its blocks, and the positions that the draft has seen in them.
        self._computed: dict[int, tuple[int, int]] = {}

    def propose(self, sequences: Many[tuple[Sequence, int]]) -> list[list[int]]:
        proposals: list[list[int]] = [[] for _ in sequences]
        context = self.runner.decoder.config.context
        ready = self._catch_up([s for s, _ in sequences if len(s.ids) <= context])
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
                proposals[i].append(sample(logits_mv, choice, logprobs=False)[0].id)
                start = len(sequence.ids) + len(proposals[i]) - 1
                if len(proposals[i]) < count and start < context:
                    rows.append(_row(sequence, start, (proposals[i][-1],), outputs=1))
                    still.append(i)
            active = still
            results = self.runner.run_rows(rows) if rows else []
            logits = [result.logits_mv for result in results if result.logits_mv is not None]
        for (sequence, _), proposed in zip(sequences, proposals, strict=True):
            if proposed:  # all but the last proposal went through the draft
                self._note(sequence, len(sequence.ids) + len(proposed) - 1)
        return proposals

    def _catch_up(self, sequences: list[Sequence]) -> dict[int, Tensor]:
        """Compute what the draft has not seen; logits after the last id of those that are done."""
        rows, budget = [], self.catch_up
        for sequence in sequences:
            start = min(self._seen(sequence), len(sequence.ids) - 1)
            take = min(len(sequence.ids) - start, budget)
            if take <= 0:
                break
            budget -= take
            done = start + take == len(sequence.ids)
            tokens = tuple(sequence.ids[start : start + take])
            rows.append(_row(sequence, start, tokens, outputs=int(done)))
        results = self.runner.run_rows(rows) if rows else []
        for sequence, row in zip(sequences, rows, strict=False):
            self._note(sequence, row.start + len(row.tokens))
        return {
            row.sequence: result.logits_mv
            for row, result in zip(rows, results, strict=True)
            if result.logits_mv is not None
        }

    def _seen(self, sequence: Sequence) -> int:
        """Positions for which the draft's keys stand in the sequence's present blocks."""
        epoch, computed = self._computed.get(sequence.number, (sequence.epoch, 0))
        return computed if epoch == sequence.epoch else 0

    def _note(self, sequence: Sequence, computed: int) -> None:
        self._computed[sequence.number] = (sequence.epoch, computed)

    def commit(self, sequence: Sequence, before: int, accepted: int) -> None:
        """Keys of rejected drafts are void: the next catch-up writes over them."""
        if sequence.number in self._computed:
            self._note(sequence, min(self._seen(sequence), before + accepted))

    def forget(self, sequence: Sequence) -> None:
        self._computed.pop(sequence.number, None)


def _row(sequence: Sequence, start: int, tokens: tuple[int, ...], outputs: int) -> Row:
    return Row(sequence.number, start, tokens, tuple(sequence.blocks), outputs)
