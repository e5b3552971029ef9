"""The C++ kernels behind the backend seam: fp32 on CPU, paged, exact.

Every row's order of summation is fixed (see `tiles.h`), so a token's logits have the same bits
alone and in a crowd, in prefill and in decode, whatever the chunks, blocks and threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from plinth.kernels.backend import LinearWeights, NormWeights
from plinth.kernels.build import library
from plinth.kernels.paged import KvCache, PagedBatch

_PANEL = 32
# Rows of one attention tile: enough to reuse keys from the first-level cache.
_TILE_TOKENS = 16

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_U = ctypes.c_uint64
_SIGNATURES = {
    "pack": (_P, _L, _L, _P, _L),
    "linear": (_P, _L, _L, _L, _P, _P, _P, _L, _P, _L, _L, _I),
    "norm": (_P, _L, _L, _L, _P, _P, _F, _P, _I),
    "norm_back": (_P, _P, _L, _L, _P, _F, _P, _P, _I),
    "rope": (_P, _L, _L, _L, _L, _P, _P, _P, _F, _P, _L, _I),
    "swiglu": (_P, _P, _L, _L, _L, _P, _I),
    "swiglu_back": (_P, _P, _P, _L, _P, _P, _I),
    "gelu": (_P, _L, _L, _L, _P, _I),
    "write_kv": (_P, _L, _P, _L, _L, _L, _L, _P, _L, _P, _P),
    "attend": (_P, _L, _L, _L, _L, _F, _P, _P, _L, _L, _P, _P, _P, _P, _L, _P, _L, _I),
    "attend_whole": (_P, _P, _P, _P, _L, _L, _L, _L, _L, _F, _P, _P, _I),
    "attend_whole_back": (
        *(_P, _P, _P, _P, _P, _P, _P, _L, _L, _L, _L, _L, _F),
        *(_P, _P, _P, _I),
    ),
    "race": (_P, _L, _L, _L, _P, _P, _P, _P, _U, _P, _P, _P, _I),
}


def instruction_set() -> str:
    """The widest set that this processor has and the kernels are built for."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, "base")


class _Kernels:
    """The library's functions for this processor, typed."""

    def __init__(self) -> None:
        handle = ctypes.CDLL(str(library()))
        suffix = instruction_set()
        for name, arguments in _SIGNATURES.items():
            function = getattr(handle, f"{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(name)


@functools.cache
def kernels() -> _Kernels:
    """Loaded once per process. Raises `build.BuildError` where they cannot be compiled."""
    return _Kernels()


class PackedLinears:
    """Maps that share an input, as one panel-packed matrix; made once per model."""

    def __init__(self, linears: tuple[LinearWeights, ...]) -> None:
        self.widths = [one.weight.shape[0] for one in linears]
        self.inputs = linears[0].weight.shape[1]
        self.outputs = sum(self.widths)
        panels = -(-self.outputs // _PANEL)
        self.packed = torch.zeros(panels * _PANEL * self.inputs)
        self.bias: Tensor | None = None
        self.pack(linears)

    def pack(self, linears: tuple[LinearWeights, ...]) -> None:
        """Take the maps' present values."""
        first = 0
        for one in linears:
            weight = one.weight.detach().float()
            if one.adapter is not None:  # merged: serving pays nothing for it
                weight = weight + one.adapter.delta().float()
            weight = weight.contiguous()
            kernels().pack(weight.data_ptr(), *weight.shape, self.packed.data_ptr(), first)
            first += weight.shape[0]
        biases = [one.bias for one in linears]
        if any(bias is not None for bias in biases):
            self.bias = torch.cat(
                [
                    torch.zeros(width) if bias is None else bias.detach().float()
                    for width, bias in zip(self.widths, biases, strict=True)
                ]
            )


class PackedWeights:
    """The packed maps of one model, found by the map that comes first."""

    def __init__(self) -> None:
        self._packs: dict[int, PackedLinears] = {}
        self._keep: list[tuple[LinearWeights, ...]] = []

    def of(self, linears: tuple[LinearWeights, ...]) -> PackedLinears:
        """The pack of these maps; packed at first sight."""
        pack = self._packs.get(id(linears[0]))
        if pack is None:
            pack = self._packs[id(linears[0])] = PackedLinears(linears)
            self._keep.append(linears)
        return pack

    def renew(self) -> None:
        """Pack again what has been packed: the maps have new values."""
        for linears in self._keep:
            self._packs[id(linears[0])].pack(linears)


class NativeBackend:
    """One launch over a paged cache. `batch` may be None where attention is not asked for."""

    def __init__(
        self, weights: PackedWeights, cache: KvCache | None = None, batch: PagedBatch | None = None
    ) -> None:
        self.weights, self.cache, self.batch = weights, cache, batch
        self.threads = torch.get_num_threads()
        self.kernels = kernels()
        if batch is not None:
            self._tiles = _tiles(batch)

    def norm(self, x_nd: Tensor, norm: NormWeights) -> Tensor:
        rows, width = x_nd.shape
        out = torch.empty(rows, width)
        bias = None if norm.bias is None else norm.bias.data_ptr()
        self.kernels.norm(
            x_nd.data_ptr(),
            x_nd.stride(0),
            rows,
            width,
            norm.weight.data_ptr(),
            bias,
            norm.eps,
            out.data_ptr(),
            self.threads,
        )
        return out

    def linear(self, x_ni: Tensor, *linears: LinearWeights) -> tuple[Tensor, ...]:
        pack = self.weights.of(linears)
        out = self._product(x_ni, pack, None)
        if len(linears) == 1:
            return (out,)
        return torch.split(out, pack.widths, dim=1)

    def linear_add(self, x_ni: Tensor, linear: LinearWeights, residual_no: Tensor) -> Tensor:
        return self._product(x_ni, self.weights.of((linear,)), residual_no)

    def _product(self, x_ni: Tensor, pack: PackedLinears, residual: Tensor | None) -> Tensor:
        rows = x_ni.shape[0]
        out = torch.empty(rows, pack.outputs)
        self.kernels.linear(
            x_ni.data_ptr(),
            x_ni.stride(0),
            rows,
            pack.inputs,
            pack.packed.data_ptr(),
            None if pack.bias is None else pack.bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            0 if residual is None else residual.stride(0),
            out.data_ptr(),
            pack.outputs,
            pack.outputs,
            self.threads,
        )
        return out

    def rope(
        self, q_nhe: Tensor, k_nke: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """In place: both are fresh outputs of `linear`."""
        for x in (q_nhe, k_nke):
            self.kernels.rope(
                x.data_ptr(),
                x.stride(0),
                x.shape[0],
                x.shape[1],
                x.shape[2] // 2,
                positions_n.data_ptr(),
                cos_pe.data_ptr(),
                sin_pe.data_ptr(),
                1.0,
                x.data_ptr(),
                x.stride(0),
                self.threads,
            )
        return q_nhe, k_nke

    def mix(self, layer: int, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor) -> Tensor:
        if self.cache is None or self.batch is None:
            raise RuntimeError("attention needs a cache and a batch")
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        n, heads, width = q_nhe.shape
        kv_heads, size = k_nke.shape[1], self.cache.block_size
        self.kernels.write_kv(
            k_nke.data_ptr(),
            k_nke.stride(0),
            v_nke.data_ptr(),
            v_nke.stride(0),
            n,
            kv_heads,
            width,
            self.batch.slots_n.data_ptr(),
            size,
            keys.data_ptr(),
            values.data_ptr(),
        )
        out = torch.empty(n, heads * width)
        firsts, counts, starts, table = self._tiles
        self.kernels.attend(
            q_nhe.data_ptr(),
            q_nhe.stride(0),
            heads,
            kv_heads,
            width,
            width**-0.5,
            keys.data_ptr(),
            values.data_ptr(),
            size,
            firsts.shape[0],
            firsts.data_ptr(),
            counts.data_ptr(),
            starts.data_ptr(),
            table.data_ptr(),
            table.shape[1],
            out.data_ptr(),
            heads * width,
            self.threads,
        )
        return out

    def swiglu(self, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        rows, width = gate_ni.shape
        out = torch.empty(rows, width)
        self.kernels.swiglu(
            gate_ni.data_ptr(),
            up_ni.data_ptr(),
            gate_ni.stride(0),
            rows,
            width,
            out.data_ptr(),
            self.threads,
        )
        return out

    def gelu(self, x_ni: Tensor) -> Tensor:
        rows, width = x_ni.shape
        out = torch.empty(rows, width)
        self.kernels.gelu(
            x_ni.data_ptr(), x_ni.stride(0), rows, width, out.data_ptr(), self.threads
        )
        return out


def _tiles(batch: PagedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut long runs into tiles: (first row, count, start position, block table) of each."""
    if int(batch.counts_q.max()) <= _TILE_TOKENS:
        return batch.firsts_q, batch.counts_q, batch.starts_q, batch.table_qb
    cuts = [
        (i, offset, min(_TILE_TOKENS, count - offset))
        for i, count in enumerate(batch.counts_q.tolist())
        for offset in range(0, count, _TILE_TOKENS)
    ]
    run, offset, count = (
        torch.tensor(column, dtype=torch.int32) for column in zip(*cuts, strict=True)
    )
    return (
        batch.firsts_q[run] + offset,
        count,
        batch.starts_q[run] + offset,
        batch.table_qb[run].contiguous(),
    )
