"""The paged cache of keys and values, and what one launch says about its rows.

Pure data: who may write which block is the engine's knowledge, how attention reads it a
backend's. Legend: L layers, B blocks, k KV heads, e head width, s block size, n rows of a launch,
q runs of a launch, b blocks of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plinth.kernels.arguments import exact, refuse, within
from plinth.kernels.specs import StateSpec, state_groups

# Of one sequence in one group: how many blocks it gave up at the beginning, and the others.
Table = tuple[int, Sequence[int]]


class KvCache:
    """Blocks for the keys and values of a model's layers: `keys[l]` is [B, k, e, s], `values[l]`
    is [B, k, s, e].

    Layers form groups (`state_groups`); `windows[g]` is a group's window, `group_of[l]` a layer's
    group. The first layers of all groups lie in the same tensors, the second ones, and so on: a
    block is one group's at a time, whose table it stands in.
    """

    def __init__(
        self,
        states: Sequence[StateSpec],
        blocks: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """states: of each layer."""
        self.blocks, self.block_size = blocks, block_size
        groups = state_groups(states)
        self.windows = tuple(group.window for group in groups)
        self.group_of = [0] * len(states)
        places = [0] * len(states)
        for number, group in enumerate(groups):
            for place, layer in enumerate(group.layers):
                self.group_of[layer], places[layer] = number, place
        k, e = states[0].kv_heads, states[0].head_dim
        self._pools = [
            (
                torch.zeros((blocks, k, e, block_size), dtype=dtype, device=device),
                torch.zeros((blocks, k, block_size, e), dtype=dtype, device=device),
            )
            for _ in range(max(places) + 1)
        ]
        self.keys = [self._pools[place][0] for place in places]
        self.values = [self._pools[place][1] for place in places]

    @classmethod
    def of_one_launch(cls, states: Sequence[StateSpec], blocks: int, block_size: int) -> KvCache:
        """For sequences that one launch reads whole: a layer's keys are of no use to a later one,
        so that all have the same memory, and one table, in which nothing is given up."""
        cache = cls([StateSpec(states[0].kv_heads, states[0].head_dim)], blocks, block_size)
        cache.group_of *= len(states)
        cache.keys *= len(states)
        cache.values *= len(states)
        return cache

    @staticmethod
    def bytes_per_block(states: Sequence[StateSpec], block_size: int, itemsize: int = 4) -> int:
        """Memory of one block: of the layers of the largest group."""
        most = max(len(group.layers) for group in state_groups(states))
        return most * states[0].bytes_of(block_size, itemsize)

    def poison(self, blocks: list[int]) -> None:
        """Fill freed blocks with NaN (tests): a read of a wrong slot then shows."""
        for keys, values in self._pools:
            keys[blocks] = float("nan")
            values[blocks] = float("nan")


@dataclass(frozen=True)
class GroupTable:
    """Where the sequences of a launch have their blocks in one group of layers.

    table_qb: block ids, padded with 0; skipped_q: how many blocks each sequence gave up before the
    first of them. Both int32 on the CPU. slots_n: where each row's keys and values go, block · size
    + offset; int64, on the device of the cache.
    """

    table_qb: Tensor
    skipped_q: Tensor
    slots_n: Tensor


@dataclass(frozen=True)
class PagedBatch:
    """Rows of one launch: `sequences` runs of consecutive tokens, one per sequence.

    starts_q[i]: position of the run's first token in its sequence; counts_q[i]: its tokens;
    firsts_q[i]: the row of its first token; tables: one for each group of the cache. int32 on the
    CPU but `positions_n` (int64, on the device of the cache).
    """

    firsts_q: Tensor
    counts_q: Tensor
    starts_q: Tensor
    positions_n: Tensor
    tables: tuple[GroupTable, ...]

    @classmethod
    def build(
        cls,
        runs: Sequence[tuple[int, int, Sequence[Table]]],
        block_size: int,
        device: str | torch.device = "cpu",
    ) -> PagedBatch:
        """From (start, count, table in each group) of each sequence, in the order of the rows."""
        counts = [count for _, count, _ in runs]
        firsts = [sum(counts[:i]) for i in range(len(counts))] if counts else []
        positions = [start + i for start, count, _ in runs for i in range(count)]
        groups = len(runs[0][2]) if runs else 0
        return cls(
            firsts_q=torch.tensor(firsts, dtype=torch.int32),
            counts_q=torch.tensor(counts, dtype=torch.int32),
            starts_q=torch.tensor([start for start, _, _ in runs], dtype=torch.int32),
            positions_n=torch.tensor(positions, dtype=torch.int64, device=device),
            tables=tuple(
                _group_table(
                    [(start, count, tables[g]) for start, count, tables in runs], block_size, device
                )
                for g in range(groups)
            ),
        )

    def check(self, cache: KvCache) -> None:
        """ArgumentError unless the rows are those of the runs, and all that they name lies within
        the cache: a kernel reads and writes there, and torch takes -1 for the last.

        Values on another device are not looked at (it would wait for them): they were made of
        the same lists as those on the CPU, and that device refuses what is out of bounds.
        """
        if len(self.tables) != len(cache.windows):
            refuse("attend", "tables", f"{len(cache.windows)}, as the cache has", len(self.tables))
        count = self.firsts_q.shape[0] if self.firsts_q.dim() == 1 else 0
        columns = {"firsts": self.firsts_q, "counts": self.counts_q, "starts": self.starts_q}
        named = []
        for name, column_q in columns.items():
            named.append(exact("attend", name, column_q, (count,), torch.int32).tolist())
        runs = list(zip(*named, strict=True))
        rows = 0
        for i, (first, tokens, start) in enumerate(runs):
            if first != rows:
                refuse("attend", "firsts", f"{rows} for run {i}, after the rows before", first)
            if tokens < 0:
                refuse("attend", "counts", f"at least 0 for run {i}", tokens)
            if start < 0:
                refuse("attend", "starts", f"at least 0 for run {i}", start)
            rows += tokens
        end = max((start + tokens for _, tokens, start in runs), default=0)
        _check_column("positions", self.positions_n, rows, end)
        for table, window in zip(self.tables, cache.windows, strict=True):
            _check_table(table, window, [(start, tokens) for _, tokens, start in runs], cache)
            _check_column("slots", table.slots_n, rows, cache.blocks * cache.block_size)


def _group_table(
    runs: Sequence[tuple[int, int, Table]], block_size: int, device: str | torch.device
) -> GroupTable:
    width = max((len(blocks) for _, _, (_, blocks) in runs), default=1)
    slots = [
        blocks[p // block_size - skipped] * block_size + p % block_size
        for start, count, (skipped, blocks) in runs
        for p in range(start, start + count)
    ]
    tables = [[*blocks, *[0] * (width - len(blocks))] for _, _, (_, blocks) in runs]
    return GroupTable(
        table_qb=torch.tensor(tables, dtype=torch.int32),
        skipped_q=torch.tensor([skipped for _, _, (skipped, _) in runs], dtype=torch.int32),
        slots_n=torch.tensor(slots, dtype=torch.int64, device=device),
    )


def _check_table(
    table: GroupTable, window: int, runs: list[tuple[int, int]], cache: KvCache
) -> None:
    """The blocks that the runs read and write stand in the table, and within the cache."""
    count, width = table.table_qb.shape if table.table_qb.dim() == 2 else (0, 0)
    exact("attend", "table", table.table_qb, (len(runs), width), torch.int32)
    within("attend", "table", table.table_qb, cache.blocks)
    skipped = exact("attend", "skipped", table.skipped_q, (count,), torch.int32).tolist()
    for i, ((start, tokens), gone) in enumerate(zip(runs, skipped, strict=True)):
        seen = max(0, start + 1 - window) if window else 0
        if not 0 <= gone <= seen // cache.block_size:
            must = f"0 … {seen // cache.block_size} for run {i}, which sees position {seen}"
            refuse("attend", "skipped", must, gone)
        room = (gone + width) * cache.block_size
        if start + tokens > room:
            must = f"within its table's {room} positions for run {i}"
            refuse("attend", "starts", must, f"{start} … {start + tokens}")


def _check_column(name: str, column_n: Tensor, rows: int, end: int) -> None:
    strided = column_n.layout is torch.strided
    if not strided or column_n.shape != (rows,) or column_n.dtype != torch.int64:
        refuse("attend", name, f"torch.int64 [{rows}], one for each row", column_n)
    if column_n.is_cpu:
        within("attend", name, column_n, end)
