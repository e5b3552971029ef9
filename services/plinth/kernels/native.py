"""The C++ kernels behind the backend seam: fp32 on CPU, paged, exact.

Every row's order of summation is fixed (see `tiles.h`), so a token's logits have the same bits
alone and in a crowd, in prefill and in decode, whatever the chunks, blocks and threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plinth.kernels import calls, experts
from plinth.kernels.backend import ExpertWeights, LinearWeights, NormWeights
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.specs import Activation, AttentionSpec


class PackedLinears:
    """Maps that share an input, as one panel-packed matrix; made once per model."""

    def __init__(self, linears: tuple[LinearWeights, ...]) -> None:
        self.widths = [one.weight.shape[0] for one in linears]
        self.packed = calls.Packed(sum(self.widths), linears[0].weight.shape[1])
        self.pack(linears)

    def pack(self, linears: tuple[LinearWeights, ...]) -> None:
        """Take the maps' present values."""
        first = 0
        for one in linears:
            weight = one.weight.detach().float()
            if one.adapter is not None:  # merged: serving pays nothing for it
                weight = weight + one.adapter.delta().float()
            self.packed.write(weight.contiguous(), first)
            first += weight.shape[0]
        biases = [one.bias for one in linears]
        if any(bias is not None for bias in biases):
            parts = [
                torch.zeros(width) if bias is None else bias.detach().float()
                for width, bias in zip(self.widths, biases, strict=True)
            ]
            self.packed.add(torch.cat(parts))


class PackedWeights:
    """The packed maps of one model, found by the map that comes first; a mixture's as one."""

    def __init__(self) -> None:
        self._packs: dict[int, PackedLinears] = {}
        self._keep: list[tuple[LinearWeights, ...]] = []
        self._mixtures: dict[int, tuple[ExpertWeights, experts.PackedExperts]] = {}

    def of(self, linears: tuple[LinearWeights, ...]) -> PackedLinears:
        """The pack of these maps; packed at first sight."""
        pack = self._packs.get(id(linears[0]))
        if pack is None:
            pack = self._packs[id(linears[0])] = PackedLinears(linears)
            self._keep.append(linears)
        return pack

    def of_mixture(self, mixture: ExpertWeights) -> experts.PackedExperts:
        """The pack of all its experts; packed at first sight."""
        known = self._mixtures.get(id(mixture))
        if known is None:
            known = self._mixtures[id(mixture)] = (mixture, experts.PackedExperts(mixture))
        return known[1]

    def renew(self) -> None:
        """Pack again what has been packed: the maps have new values."""
        for linears in self._keep:
            self._packs[id(linears[0])].pack(linears)
        for mixture, experts_of_it in self._mixtures.values():
            experts_of_it.pack(mixture)


class NativeBackend:
    """One launch over a paged cache. `batch` may be None where attention is not asked for.

    Raises `arguments.ArgumentError` for what the kernels cannot compute from: here for a batch
    whose rows, blocks or slots lie outside of the cache, in `rope` for positions outside of its
    table.
    """

    def __init__(
        self, weights: PackedWeights, cache: KvCache | None = None, batch: PagedBatch | None = None
    ) -> None:
        self.weights, self.cache, self.batch = weights, cache, batch
        self.threads = torch.get_num_threads()
        self._tiles = None if batch is None or cache is None else calls.Tiles(batch, cache)
        self._rotation: calls.Rotation | None = None

    def norm(self, x_nd: Tensor, norm: NormWeights) -> Tensor:
        return calls.norm(x_nd, norm.gain, norm.bias, norm.eps, self.threads)

    def linear(self, x_ni: Tensor, *linears: LinearWeights) -> tuple[Tensor, ...]:
        pack = self.weights.of(linears)
        out = calls.linear(x_ni, pack.packed, None, self.threads)
        if len(linears) == 1:
            return (out,)
        return torch.split(out, pack.widths, dim=1)

    def linear_add(self, x_ni: Tensor, linear: LinearWeights, residual_no: Tensor) -> Tensor:
        return calls.linear(x_ni, self.weights.of((linear,)).packed, residual_no, self.threads)

    def rope(
        self, q_nhe: Tensor, k_nke: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """In place: both are fresh outputs of `linear`."""
        rotation = self._rotation
        if rotation is None or not rotation.is_of(positions_n, cos_pe, sin_pe):
            rotation = self._rotation = calls.Rotation(positions_n, cos_pe, sin_pe)
        rotation.turn_both(q_nhe, k_nke, self.threads)
        return q_nhe, k_nke

    def mix(self, spec: AttentionSpec, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor) -> Tensor:
        if self._tiles is None:
            raise RuntimeError("attention needs a cache and a batch")
        self._tiles.write(spec.layer, k_nke, v_nke)
        return self._tiles.attend(spec, q_nhe, self.threads)

    def gate(self, activation: Activation, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        return calls.gate(activation, gate_ni, up_ni, self.threads)

    def activate(self, activation: Activation, x_ni: Tensor) -> Tensor:
        return calls.activate(activation, x_ni, self.threads)

    def mixture(self, x_nd: Tensor, logits_nc: Tensor, mixture: ExpertWeights) -> Tensor:
        chosen = experts.route(logits_nc, mixture.chosen, mixture.normalised)
        pack = self.weights.of_mixture(mixture)
        return experts.mixture(x_nd, *chosen, pack, mixture.activation, self.threads)
