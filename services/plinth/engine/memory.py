"""How many blocks a cache gets: what the memory allows, and no more than can be used."""

from __future__ import annotations

from plinth.engine.scheduler import Limits
from plinth.engine.tables import blocks_needed
from plinth.kernels.paged import KvCache
from plinth.kernels.specs import StateSpec, state_groups


def block_count(
    states: list[StateSpec], limits: Limits, block_size: int, memory: int | None, itemsize: int
) -> int:
    """Blocks for a model whose layers keep `states`, of at most `memory` bytes (None: no limit).

    As many as `limits.running` sequences of `limits.positions` could hold at once, with what a
    step's prompts write ahead of a window. May be too few for any sequence: see `fewest`.
    """
    windows = [group.window for group in state_groups(states)]
    reach = -(-limits.positions // block_size)
    ahead = sum(0 < window < limits.positions for window in windows)
    most = limits.running * blocks_needed(reach, block_size, windows)
    most += ahead * -(-limits.batch_tokens // block_size)
    each = KvCache.bytes_per_block(states, block_size, itemsize)
    return most if memory is None else min(memory // each, most)


def fewest(states: list[StateSpec], limits: Limits, block_size: int) -> int:
    """Two blocks in each group: less holds nothing worth a step; or as many as a whole sequence
    holds, where that is less. `block_count` gives so many wherever the memory has them."""
    windows = [group.window for group in state_groups(states)]
    reach = -(-limits.positions // block_size)
    return min(2 * len(windows), blocks_needed(reach, block_size, windows))
