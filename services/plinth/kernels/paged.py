"""The paged cache of keys and values, and what one launch says about its rows.

Pure data: who may write which block is the engine's knowledge, how attention reads it a
backend's. Legend: L layers, B blocks, k KV heads, e head width, s block size, n rows of a launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plinth.kernels.arguments import exact, refuse, within


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

    def check(self, cache: KvCache) -> None:
        """ArgumentError unless the rows are those of the runs, and all that they name lies within
        the cache: a kernel reads and writes there, and torch takes -1 for the last.

        Values on another device are not looked at (it would wait for them): they were made of
        the same lists as those on the CPU, and that device refuses what is out of bounds.
        """
        count, width = self.table_qb.shape if self.table_qb.dim() == 2 else (0, 0)
        columns = {"firsts": self.firsts_q, "counts": self.counts_q, "starts": self.starts_q}
        runs = []
        for name, column_q in columns.items():
            runs.append(exact("attend", name, column_q, (count,), torch.int32).tolist())
        exact("attend", "table", self.table_qb, (count, width), torch.int32)
        within("attend", "table", self.table_qb, cache.blocks)
        rows, room = 0, width * cache.block_size
        for i, (first, tokens, start) in enumerate(zip(*runs, strict=True)):
            if first != rows:
                refuse("attend", "firsts", f"{rows} for run {i}, after the rows before", first)
            if tokens < 0:
                refuse("attend", "counts", f"at least 0 for run {i}", tokens)
            if start < 0 or start + tokens > room:
                must = f"within its table's {room} positions for run {i}"
                refuse("attend", "starts", must, f"{start} … {start + tokens}")
            rows += tokens
        for name, column_n, end in (
            ("positions", self.positions_n, room),
            ("slots", self.slots_n, cache.blocks * cache.block_size),
        ):
            strided = column_n.layout is torch.strided
            if not strided or column_n.shape != (rows,) or column_n.dtype != torch.int64:
                refuse("attend", name, f"torch.int64 [{rows}], one for each row", column_n)
            if column_n.is_cpu:
                within("attend", name, column_n, end)
