"""The operations without state, in plain torch: autograd, any device, any float type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from plinth.kernels.backend import ExpertMaps, ExpertWeights, LinearWeights, NormWeights
from plinth.kernels.specs import Activation

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class DenseOps:
    """What every torch backend shares; attention (`mix`) is left to those who have a state."""

    def norm(self, x_nd: Tensor, norm: NormWeights) -> Tensor:
        if norm.bias is None:
            return F.rms_norm(x_nd, (x_nd.shape[-1],), norm.gain, norm.eps)
        return F.layer_norm(x_nd, (x_nd.shape[-1],), norm.gain, norm.bias, norm.eps)

    def linear(self, x_ni: Tensor, *linears: LinearWeights) -> tuple[Tensor, ...]:
        return tuple(_affine(x_ni, one) for one in linears)

    def linear_add(self, x_ni: Tensor, linear: LinearWeights, residual_no: Tensor) -> Tensor:
        return residual_no + _affine(x_ni, linear)

    def rope(
        self, q_nhe: Tensor, k_nke: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        # `index_select` refuses what lies outside of the table; indexing would wrap below 0.
        cos = cos_pe.index_select(0, positions_n).unsqueeze(1).to(q_nhe.dtype)
        sin = sin_pe.index_select(0, positions_n).unsqueeze(1).to(q_nhe.dtype)
        return _rotate(q_nhe, cos, sin), _rotate(k_nke, cos, sin)

    def gate(self, activation: Activation, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        return self.activate(activation, gate_ni) * up_ni

    def activate(self, activation: Activation, x_ni: Tensor) -> Tensor:
        return _ACTIVATIONS[activation](x_ni)

    def mixture(self, x_nd: Tensor, logits_nc: Tensor, mixture: ExpertWeights) -> Tensor:
        weights_nj, experts_nj = route(logits_nc, mixture.chosen, mixture.normalised)
        # Each expert's rows side by side; one without any takes part, so that it has a gradient.
        order = experts_nj.flatten().argsort(stable=True)
        counts = experts_nj.flatten().bincount(minlength=len(mixture.experts)).tolist()
        given = torch.split(x_nd.index_select(0, order // mixture.chosen), counts)
        made = torch.cat(
            [
                self._expert(rows, expert, mixture.activation)
                for rows, expert in zip(given, mixture.experts, strict=True)
            ]
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        made_njd = made.index_select(0, back).view(*experts_nj.shape, x_nd.shape[1])
        return (made_njd * weights_nj.to(made.dtype).unsqueeze(2)).sum(1)

    def _expert(self, x_nd: Tensor, expert: ExpertMaps, activation: Activation) -> Tensor:
        gate_ni, up_ni = self.linear(x_nd, expert.gate, expert.up)
        return self.linear(self.gate(activation, gate_ni, up_ni), expert.down)[0]


def route(logits_nc: Tensor, chosen: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """The weights in fp32 and the experts of each row, [n, j], the likeliest first."""
    weights_nj, experts_nj = logits_nc.softmax(-1, dtype=torch.float32).topk(chosen, dim=-1)
    if normalised:
        weights_nj = weights_nj / weights_nj.sum(-1, keepdim=True)
    return weights_nj, experts_nj


def _affine(x_ni: Tensor, one: LinearWeights) -> Tensor:
    out_no = F.linear(x_ni, one.weight, one.bias)
    return out_no if one.adapter is None else one.adapter.add_to(out_no, x_ni)


def _rotate(x_nhe: Tensor, cos_n1e: Tensor, sin_n1e: Tensor) -> Tensor:
    """Rotate the pairs (i, i + features/2) of each head; the other features stay."""
    features = 2 * cos_n1e.shape[-1]
    low, high = x_nhe[..., :features].chunk(2, dim=-1)
    turned = (low * cos_n1e - high * sin_n1e, high * cos_n1e + low * sin_n1e)
    return torch.cat((*turned, x_nhe[..., features:]), dim=-1)
