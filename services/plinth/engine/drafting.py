"""Who gets drafts in a step, how many, and from which drafter, whose faults cost no answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Sequence as Many

from plinth.engine.scheduler import Scheduler
from plinth.engine.sequence import Sequence
from plinth.engine.speculation import MAX_DRAFT, Drafter

# Above this many sequences a step is bound by arithmetic, not by reading weights, and
# verifying wrong drafts costs the others time.
SPECULATE_UP_TO = 4
# Steps without drafts after a row of drafts that were all wrong.
_DRAFT_REST = 4
_log = logging.getLogger(__name__)


class Drafting:
    """The drafters of one engine, by name."""

    def __init__(self, drafters: Mapping[str, Drafter], default: str, vocab_size: int) -> None:
        """default: the drafter of requests that name none, or "off"."""
        self._drafters = {
            name: GuardedDrafter(drafter, vocab_size) for name, drafter in drafters.items()
        }
        self._default = default

    @property
    def names(self) -> list[str]:
        """What a request may ask for."""
        return sorted(self._drafters)

    def draft(self, scheduler: Scheduler, positions: int) -> None:
        """Ask the drafters on behalf of the sequences that are about to decode.

        positions: the most that a sequence may take. Blocks for the drafts are reserved, of those
        that nobody needs in this step.
        """
        for sequence in scheduler.running:
            sequence.drafts = []
        if len(scheduler.running) > SPECULATE_UP_TO:
            return
        wanted: dict[str, list[tuple[Sequence, int]]] = {}
        for sequence in scheduler.running:
            scheduler.at = sequence
            name = self._name(sequence)
            if name not in self._drafters or sequence.scoring or sequence.pending != 1:
                continue
            if sequence.draft_rest:
                sequence.draft_rest -= 1
                continue
            # One token comes from the target itself; drafts beyond the allowance are waste.
            count = min(sequence.draft_length, sequence.allowance(positions) - 1)
            if count > 0 and scheduler.reserve_spare(sequence, len(sequence.ids) + count):
                wanted.setdefault(name, []).append((sequence, count))
        for name, sequences in wanted.items():
            proposals = self._drafters[name].propose(sequences)
            for (sequence, _), drafts in zip(sequences, proposals, strict=True):
                sequence.drafts = drafts

    def commit(self, sequence: Sequence, drafts: int, accepted: int, before: int) -> None:
        """`accepted` of `drafts` were right for a sequence that had `before` ids: longer ones while
        they all are, a rest when they are all wrong."""
        if not drafts:
            return
        usage = sequence.usage
        usage.draft_proposed += drafts
        usage.draft_accepted += accepted
        if accepted == drafts:
            sequence.draft_length = min(2 * sequence.draft_length, MAX_DRAFT)
        elif accepted == 0:
            sequence.draft_length = max(1, sequence.draft_length // 2)
            sequence.draft_rest = _DRAFT_REST
        self._drafters[self._name(sequence)].commit(sequence, before, accepted)

    def forget(self, sequence: Sequence) -> None:
        """The sequence ended."""
        for drafter in self._drafters.values():
            drafter.forget(sequence)

    def _name(self, sequence: Sequence) -> str:
        return sequence.request.sampling.speculation or self._default


class GuardedDrafter:
    """A drafter whose faults cost speed and nothing else.

    Where it raises, or proposes what is no token, the sequence that it was asked about goes on
    without its drafts.
    """

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter, self._vocab_size = drafter, vocab_size
        self._failed: set[int] = set()

    def propose(self, sequences: Many[tuple[Sequence, int]]) -> list[list[int]]:
        """See `Drafter.propose`; never raises."""
        asked = [pair for pair in sequences if pair[0].number not in self._failed]
        proposals = dict(zip((s.number for s, _ in asked), self._propose(asked), strict=True))
        return [proposals.get(sequence.number, []) for sequence, _ in sequences]

    def _propose(self, sequences: Many[tuple[Sequence, int]]) -> list[list[int]]:
        try:
            proposals = self._drafter.propose(sequences) if sequences else []
            self._check(sequences, proposals)
        except Exception as error:  # noqa: BLE001 - answers do not depend on drafts
            if len(sequences) > 1:
                return [self._propose([one])[0] for one in sequences]
            self._without(sequences[0][0], error)
            return [[]]
        return proposals

    def _check(self, sequences: Many[tuple[Sequence, int]], proposals: list[list[int]]) -> None:
        for (_, count), drafts in zip(sequences, proposals, strict=True):
            if len(drafts) > count:
                raise ValueError(f"{len(drafts)} drafts, {count} were asked for")
            if not all(isinstance(id_, int) and 0 <= id_ < self._vocab_size for id_ in drafts):
                raise ValueError(f"drafts outside the vocabulary of {self._vocab_size}")

    def _without(self, sequence: Sequence, error: Exception) -> None:
        self._failed.add(sequence.number)
        _log.warning(
            "request %s goes on without drafts: the drafter failed: %r", sequence.request.id, error
        )

    def commit(self, sequence: Sequence, before: int, accepted: int) -> None:
        """See `Drafter.commit`; never raises."""
        try:
            self._drafter.commit(sequence, before, accepted)
        except Exception as error:  # noqa: BLE001 - answers do not depend on drafts
            self._without(sequence, error)

    def forget(self, sequence: Sequence) -> None:
        """See `Drafter.forget`; never raises."""
        self._failed.discard(sequence.number)
        try:
            self._drafter.forget(sequence)
        except Exception as error:  # noqa: BLE001 - answers do not depend on drafts
            _log.warning("the drafter can't forget request %s: %r", sequence.request.id, error)
