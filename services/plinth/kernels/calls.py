"""The kernels of inference as functions of tensors.

Their one door (`race` is that of sampling, `gradients` of training): here a tensor becomes a
pointer, after it was looked at. Each raises `ArgumentError`, which names the argument. What stays
the same for a whole launch (block tables, slots, the rotary table) is looked at once: `Tiles`,
`Rotation`.
Legend: n rows, d width, i and o in and out features, h heads, k KV heads, e head width.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from plinth.kernels import arguments
from plinth.kernels.arguments import exact, heads, matrix, refuse
from plinth.kernels.library import kernels
from plinth.kernels.paged import GroupTable, KvCache, PagedBatch
from plinth.kernels.specs import Activation, AttentionSpec

PANEL = 32
MAX_WINDOW = 1 << 30
# By their places in `elementary.h`.
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
# Rows of one attention tile: enough to reuse keys from the first-level cache.
_TILE_TOKENS = 16


class Packed:
    """[o, i] of several maps, one below the other, in panels of 32 outputs; zeros at first."""

    def __init__(self, outputs: int, inputs: int) -> None:
        arguments.whole_number("pack", "outputs", outputs, 1)
        arguments.whole_number("pack", "inputs", inputs, 1)
        self.outputs, self.inputs = outputs, inputs
        self._panels = torch.zeros(-(-outputs // PANEL) * PANEL * inputs)
        self._bias: Tensor | None = None
        self.pointer = self._panels.data_ptr()
        self.bias_pointer: int | None = None

    def write(self, weight_oi: Tensor, first: int) -> None:
        """These rows become rows `first` … of the whole."""
        arguments.whole_number("pack", "first", first, 0)
        rows = weight_oi.shape[0] if weight_oi.dim() == 2 else 0
        exact("pack", "weight", weight_oi, (rows, self.inputs))
        if first + rows > self.outputs:
            refuse("pack", "weight", f"within {self.outputs} rows", f"{first} … {first + rows}")
        kernels().pack(weight_oi.data_ptr(), rows, self.inputs, self.pointer, first)

    def add(self, bias_o: Tensor) -> None:
        """What is added to the product."""
        self._bias = exact("linear", "bias", bias_o, (self.outputs,))
        self.bias_pointer = bias_o.data_ptr()


def linear(x_ni: Tensor, packed: Packed, residual_no: Tensor | None, threads: int) -> Tensor:
    """x · packedᵀ (+ bias) (+ residual), [n, o]."""
    n, i, apart = matrix("linear", "x", x_ni)
    if i != packed.inputs:
        refuse("linear", "x", f"{packed.inputs} wide", x_ni)
    residual, between, outputs = None, 0, packed.outputs
    if residual_no is not None:
        rows, width, between = matrix("linear", "residual", residual_no)
        if rows != n or width != outputs:
            refuse("linear", "residual", f"[{n}, {outputs}]", residual_no)
        residual = residual_no.data_ptr()
    out_no = torch.empty(n, outputs)
    kernels().linear(
        x_ni.data_ptr(), apart, n, i, packed.pointer, packed.bias_pointer,
        residual, between, out_no.data_ptr(), outputs, outputs, threads,
    )  # fmt: skip
    return out_no


def norm(x_nd: Tensor, weight_d: Tensor, bias_d: Tensor | None, eps: float, threads: int) -> Tensor:
    """RMSNorm, or with a bias LayerNorm, of each row."""
    n, d, apart = matrix("norm", "x", x_nd)
    exact("norm", "weight", weight_d, (d,))
    bias = None if bias_d is None else exact("norm", "bias", bias_d, (d,)).data_ptr()
    out_nd = torch.empty(n, d)
    kernels().norm(
        x_nd.data_ptr(), apart, n, d, weight_d.data_ptr(), bias, eps,
        out_nd.data_ptr(), threads,
    )  # fmt: skip
    return out_nd


class Rotation:
    """Positions and a rotary table [context, features/2] that has them all."""

    def __init__(self, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor) -> None:
        context, half = cos_pe.shape if cos_pe.dim() == 2 else (0, 0)
        exact("rope", "cosines", cos_pe, (context, half))
        exact("rope", "sines", sin_pe, (context, half))
        exact("rope", "positions", positions_n, (positions_n.numel(),), torch.int64)
        arguments.within("rope", "positions", positions_n, context)
        self.tensors = (positions_n, cos_pe, sin_pe)
        self.rows, self.half = positions_n.shape[0], half
        self._pointers = (positions_n.data_ptr(), cos_pe.data_ptr(), sin_pe.data_ptr())

    def is_of(self, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor) -> bool:
        """Whether it was made of these very tensors."""
        mine = self.tensors
        return mine[0] is positions_n and mine[1] is cos_pe and mine[2] is sin_pe

    def turn(self, x_nhe: Tensor, out_nhe: Tensor, turn: float, threads: int) -> None:
        """Rotate the pairs (i, i + features/2), backwards where `turn` is -1; out may be x."""
        n, h, e, apart = self._fits(x_nhe)
        to = apart
        if out_nhe is not x_nhe:
            _, _, _, to = heads("rope", "out", out_nhe)
            if out_nhe.shape != x_nhe.shape:
                refuse("rope", "out", f"of x's shape {list(x_nhe.shape)}", out_nhe)
        if n > 1 and to < h * e:
            refuse("rope", "out", "of rows that do not overlap", out_nhe)
        self._turn(x_nhe.data_ptr(), apart, h, e, turn, out_nhe.data_ptr(), to, threads)

    def turn_both(self, q_nhe: Tensor, k_nke: Tensor, threads: int) -> None:
        """Rotate in place; in one pass where the heads of k follow those of q in memory."""
        n, h, e, apart = self._fits(q_nhe)
        _, kv_heads, width, between = self._fits(k_nke)
        q, all_heads = q_nhe.data_ptr(), h + kv_heads
        follows = k_nke.data_ptr() == q + h * e * 4 and between == apart and width == e
        if follows and (n == 1 or apart >= all_heads * e):
            self._turn(q, apart, all_heads, e, 1.0, q, apart, threads)
        else:
            self.turn(q_nhe, q_nhe, 1.0, threads)
            self.turn(k_nke, k_nke, 1.0, threads)

    def _fits(self, x_nhe: Tensor) -> tuple[int, int, int, int]:
        n, h, e, apart = heads("rope", "x", x_nhe)
        if n != self.rows:
            refuse("rope", "x", f"of {self.rows} rows, as many as positions", x_nhe)
        if e < 2 * self.half:
            refuse("rope", "x", f"{2 * self.half} wide at least, twice the table", x_nhe)
        return n, h, e, apart

    def _turn(
        self, x: int, apart: int, h: int, e: int, turn: float, out: int, to: int, threads: int
    ) -> None:
        kernels().rope(
            x, apart, self.rows, h, e, self.half, *self._pointers, turn, out, to, threads
        )


class Tiles:
    """What one launch says about its rows, cut into tiles: up to 16 tokens of one sequence.

    Looked at once, against the cache that it will be used with.
    """

    def __init__(self, batch: PagedBatch, cache: KvCache) -> None:
        batch.check(cache)
        self.rows, self.cache = batch.positions_n.shape[0], cache
        run_q, columns = _cut(batch)
        self._count = columns[0].shape[0]
        self._columns = tuple(column.data_ptr() for column in columns)
        self._groups = [_GroupTiles(table, self.rows, run_q) for table in batch.tables]
        self._keep = columns
        # By layer, KV heads, head width and window: where keys and values lie, and the table.
        self._seen: dict[tuple[int, int, int, int], tuple[int, int, _GroupTiles]] = {}

    def write(self, layer: int, k_nke: Tensor, v_nke: Tensor) -> None:
        """Keys and values of all rows go to their slots of the layer's cache."""
        n, kv_heads, e, apart = heads("write_kv", "k", k_nke)
        rows, also, width, between = heads("write_kv", "v", v_nke)
        if n != self.rows:
            refuse("write_kv", "k", f"of {self.rows} rows, as many as slots", k_nke)
        if rows != n or also != kv_heads or width != e:
            refuse("write_kv", "v", f"of k's shape {list(k_nke.shape)}", v_nke)
        keys, values, tiles = self._pools("write_kv", layer, kv_heads, e, -1)
        kernels().write_kv(
            k_nke.data_ptr(), apart, v_nke.data_ptr(), between, n, kv_heads, e,
            tiles.slots, self.cache.block_size, keys, values,
        )  # fmt: skip

    def attend(self, spec: AttentionSpec, q_nhe: Tensor, threads: int) -> Tensor:
        """Attention of each row over its sequence's blocks, [n, h * e]."""
        n, h, e, apart = heads("attend", "q", q_nhe)
        if n != self.rows:
            refuse("attend", "q", f"of {self.rows} rows, as many as the launch has", q_nhe)
        kv_heads, window = spec.state.kv_heads, spec.state.window
        arguments.whole_number("attend", "kv_heads", kv_heads, 1)
        arguments.whole_number("attend", "window", window, 0)
        arguments.grouped("attend", "q", h, kv_heads)
        keys, values, tiles = self._pools("attend", spec.layer, kv_heads, e, window)
        out_nd = torch.empty(n, h * e)
        kernels().attend(
            q_nhe.data_ptr(), apart, h, kv_heads, e, spec.scale, keys, values,
            self.cache.block_size, self._count, *self._columns, tiles.skipped, tiles.table,
            tiles.width, window, spec.cap, out_nd.data_ptr(), h * e, threads,
        )  # fmt: skip
        return out_nd

    def _pools(
        self, kernel: str, layer: int, kv_heads: int, e: int, window: int
    ) -> tuple[int, int, _GroupTiles]:
        """window: that of the reader, -1 where one writes."""
        seen = self._seen.get((layer, kv_heads, e, window))
        if seen is not None:
            return seen
        cache = self.cache
        if not 0 <= layer < len(cache.keys):
            refuse(kernel, "layer", f"within 0 … {len(cache.keys) - 1}", layer)
        keys, values, size = cache.keys[layer], cache.values[layer], cache.block_size
        exact(kernel, "keys", keys, (cache.blocks, kv_heads, e, size))
        exact(kernel, "values", values, (cache.blocks, kv_heads, size, e))
        group = cache.group_of[layer]
        kept = cache.windows[group]
        if window > (kept or MAX_WINDOW) or (kept and window == 0):
            must = f"within the {kept} tokens that are kept" if kept else f"at most {MAX_WINDOW}"
            refuse(kernel, "window", must, window)
        found = keys.data_ptr(), values.data_ptr(), self._groups[group]
        self._seen[layer, kv_heads, e, window] = found
        return found


class _GroupTiles:
    """Pointers of one group's table, by tile."""

    def __init__(self, table: GroupTable, rows: int, run_q: Tensor | None) -> None:
        exact("write_kv", "slots", table.slots_n, (rows,), torch.int64)
        table_qb, skipped_q = table.table_qb, table.skipped_q
        if run_q is not None:
            table_qb, skipped_q = table_qb[run_q], skipped_q[run_q]
        self._keep = (table.slots_n, table_qb, skipped_q)
        self.slots, self.table, self.skipped = (tensor.data_ptr() for tensor in self._keep)
        self.width = table_qb.shape[1]


def _cut(batch: PagedBatch) -> tuple[Tensor | None, tuple[Tensor, Tensor, Tensor]]:
    """Tiles: (first row, count, start position) of each, and the run that it is of; None where
    each run is a tile."""
    counts = batch.counts_q.tolist()
    if max(counts, default=0) <= _TILE_TOKENS:
        return None, (batch.firsts_q, batch.counts_q, batch.starts_q)
    cuts = [
        (i, offset, min(_TILE_TOKENS, count - offset))
        for i, count in enumerate(counts)
        for offset in range(0, count, _TILE_TOKENS)
    ]
    run, offset, count = (
        torch.tensor(column, dtype=torch.int32) for column in zip(*cuts, strict=True)
    )
    return run, (batch.firsts_q[run] + offset, count, batch.starts_q[run] + offset)


def gate(activation: Activation, gate_ni: Tensor, up_ni: Tensor, threads: int) -> Tensor:
    """activation(gate) * up."""
    n, i, apart = matrix("activate", "gate", gate_ni)
    rows, width, between = matrix("activate", "up", up_ni)
    if rows != n or width != i:
        refuse("activate", "up", f"of gate's shape {list(gate_ni.shape)}", up_ni)
    out_ni = torch.empty(n, i)
    kernels().activate(
        ACTIVATIONS.index(activation), gate_ni.data_ptr(), apart, up_ni.data_ptr(), between, n, i,
        out_ni.data_ptr(), threads,
    )  # fmt: skip
    return out_ni


def activate(activation: Activation, x_ni: Tensor, threads: int) -> Tensor:
    """Each element by the activation."""
    n, i, apart = matrix("activate", "x", x_ni)
    out_ni = torch.empty(n, i)
    kernels().activate(
        ACTIVATIONS.index(activation), x_ni.data_ptr(), apart, None, 0, n, i,
        out_ni.data_ptr(), threads,
    )  # fmt: skip
    return out_ni
