"""The kernels of mixtures of experts as functions of tensors: the door as `calls` is.

Legend: n rows, d width, i width within an expert, c experts, j experts of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plinth.kernels import arguments
from plinth.kernels.arguments import exact, matrix, refuse
from plinth.kernels.backend import ExpertWeights, LinearWeights
from plinth.kernels.calls import ACTIVATIONS, PANEL, Packed
from plinth.kernels.library import kernels
from plinth.kernels.specs import Activation


class PackedExperts:
    """The maps of all experts of a layer, each in panels of its own."""

    def __init__(self, mixture: ExpertWeights) -> None:
        self.inner, self.width = mixture.experts[0].gate.weight.shape
        self.count = len(mixture.experts)
        self.gate = Packed(self.count * _whole(self.inner), self.width)
        self.up = Packed(self.count * _whole(self.inner), self.width)
        self.down = Packed(self.count * _whole(self.width), self.inner)
        self.pack(mixture)

    def pack(self, mixture: ExpertWeights) -> None:
        """Take the maps' present values."""
        for number, expert in enumerate(mixture.experts):
            for packed, one in (
                (self.gate, expert.gate), (self.up, expert.up), (self.down, expert.down)
            ):  # fmt: skip
                weight = _plain(one)
                packed.write(weight, number * _whole(weight.shape[0]))


def _whole(rows: int) -> int:
    """Rows of whole panels."""
    return -(-rows // PANEL) * PANEL


def _plain(one: LinearWeights) -> Tensor:
    if one.bias is not None or one.adapter is not None:
        raise ValueError("an expert's map has neither a bias nor an adapter")
    return one.weight.detach().float().contiguous()


def route(logits_nc: Tensor, chosen: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """Each row's experts, int32 [n, j], the likeliest first, and their weights [n, j]."""
    n, count, apart = matrix("route", "logits", logits_nc)
    arguments.whole_number("route", "chosen", chosen, 1)
    if chosen > count:
        refuse("route", "chosen", f"at most the {count} experts", chosen)
    experts_nj = torch.empty(n, chosen, dtype=torch.int32)
    weights_nj = torch.empty(n, chosen)
    kernels().route(
        logits_nc.data_ptr(), apart, n, count, chosen, int(normalised),
        experts_nj.data_ptr(), weights_nj.data_ptr(),
    )  # fmt: skip
    return experts_nj, weights_nj


def mixture(
    x_nd: Tensor, experts_nj: Tensor, weights_nj: Tensor, packed: PackedExperts,
    activation: Activation, threads: int,
) -> Tensor:  # fmt: skip
    """Σ over a row's experts of weight · down(activation(gate(x)) * up(x)), [n, d]; the experts of
    a row must differ."""
    n, d, apart = matrix("experts", "x", x_nd)
    if d != packed.width:
        refuse("experts", "x", f"{packed.width} wide", x_nd)
    chosen = experts_nj.shape[1] if experts_nj.dim() == 2 else 0
    exact("experts", "experts", experts_nj, (n, chosen), torch.int32)
    exact("experts", "weights", weights_nj, (n, chosen))
    arguments.within("experts", "experts", experts_nj, packed.count)
    out_nd = torch.empty(n, d)
    kernels().experts(
        x_nd.data_ptr(), apart, n, d, experts_nj.data_ptr(), weights_nj.data_ptr(), chosen,
        ACTIVATIONS.index(activation), packed.gate.pointer, packed.up.pointer,
        packed.down.pointer, packed.count, packed.inner, out_nd.data_ptr(), threads,
    )  # fmt: skip
    return out_nd
