"""The paged cache of keys and values, and what one launch says about its rows.

Pure data: who may write which block is the engine's knowledge, how attention reads it a
backend's. Legend: L layers, B blocks, k KV heads, e head width, s block size, n rows of a launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class KvCache:
    """One pool of blocks per layer: `keys[l]` is [B, k, e, s], `values[l]` is [B, k, s, e]."""

    def __init__(
        self,
        layers: int,
        blocks: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.blocks, self.block_size = blocks, block_size
        keys = (blocks, kv_heads, head_dim, block_size)
        values = (blocks, kv_heads, block_size, head_dim)
        self.keys = [torch.zeros(keys, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(values, dtype=dtype, device=device) for _ in range(layers)]

    @staticmethod
    def bytes_per_block(
        layers: int, kv_heads: int, head_dim: int, block_size: int, itemsize: int = 4
    ) -> int:
        """Memory of one block over all layers."""
        return 2 * layers * kv_heads * head_dim * block_size * itemsize

    def poison(self, blocks: list[int]) -> None:
        """Fill freed blocks with NaN (tests): a read of a wrong slot then shows."""
        for pool in (*self.keys, *self.values):
            pool[blocks] = float("nan")


@dataclass(frozen=True)
class PagedBatch:
    """Rows of one launch: `sequences` runs of consecutive tokens, one per sequence.

    starts_q[i]: position of the run's first token in its sequence; counts_q[i]: its tokens;
    firsts_q[i]: the row of its first token; table_qb: block ids, padded with 0.
    All int32 on the CPU but `slots_n`, `positions_n` (int64, on the device of the cache).
    """

    firsts_q: Tensor
    counts_q: Tensor
    starts_q: Tensor
    table_qb: Tensor
    positions_n: Tensor
    slots_n: Tensor

    @classmethod
    def build(
        cls,
        runs: list[tuple[int, int, list[int]]],
        block_size: int,
        device: str | torch.device = "cpu",
    ) -> PagedBatch:
        """From (start, count, block table) of each sequence, in the order of the rows."""
        counts = [count for _, count, _ in runs]
        firsts = [sum(counts[:i]) for i in range(len(counts))] if counts else []
        width = max((len(table) for _, _, table in runs), default=1)
        positions = [start + i for start, count, _ in runs for i in range(count)]
        slots = [
            table[p // block_size] * block_size + p % block_size
            for start, count, table in runs
            for p in range(start, start + count)
        ]
        return cls(
            firsts_q=torch.tensor(firsts, dtype=torch.int32),
            counts_q=torch.tensor(counts, dtype=torch.int32),
            starts_q=torch.tensor([start for start, _, _ in runs], dtype=torch.int32),
            table_qb=torch.tensor(
                [table + [0] * (width - len(table)) for _, _, table in runs], dtype=torch.int32
            ),
            positions_n=torch.tensor(positions, dtype=torch.int64, device=device),
            slots_n=torch.tensor(slots, dtype=torch.int64, device=device),
        )
