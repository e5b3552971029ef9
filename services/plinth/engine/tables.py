"""A sequence's block tables: one for each group of layers that keep alike. Integers only.

All tables of a sequence reach as far: a block of tokens is a block in each group. Layers with a
window give up the blocks at the beginning that no later token sees, so that their table is the
last part of the whole; the others keep all of theirs.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Tables:
    """blocks[g]: ids of the blocks number skipped[g] … reach - 1, in group g."""

    blocks: list[list[int]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    reach: int = 0

    def plain(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(skipped, blocks) of each group, as a plan says it."""
        return tuple(
            (skipped, tuple(blocks))
            for skipped, blocks in zip(self.skipped, self.blocks, strict=True)
        )

    def held(self) -> list[int]:
        """All blocks; those at the beginning of the sequence first."""
        if len(self.blocks) == 1:
            return self.blocks[0]
        return [block for number in range(self.reach) for block in self.of(number)]

    def of(self, number: int) -> Iterator[int]:
        """Block `number` in each group that has it still."""
        for skipped, blocks in zip(self.skipped, self.blocks, strict=True):
            if number >= skipped:
                yield blocks[number - skipped]


def unseen(window: int, position: int, block_size: int) -> int:
    """How many blocks at the beginning neither `position` nor a later one sees, in a group with
    this window."""
    return max(0, position + 1 - window) // block_size if window else 0


def blocks_needed(reach: int, block_size: int, windows: Sequence[int]) -> int:
    """The most blocks that a sequence holds, in all groups, until it is `reach` blocks long, where
    it computes one token at a time: a window lies in this many and one more, as it moves on."""
    return sum(
        min(reach, -(-(window - 1) // block_size) + 1) if window else reach for window in windows
    )


def most_positions(total: int, block_size: int, windows: Sequence[int], limit: int) -> int:
    """The longest sequence, in tokens and up to `limit`, for which `total` blocks are enough."""
    lengths = range(1, -(-limit // block_size) + 1)
    fitting = bisect.bisect(
        lengths, total, key=lambda reach: blocks_needed(reach, block_size, windows)
    )
    return min(limit, fitting * block_size)
