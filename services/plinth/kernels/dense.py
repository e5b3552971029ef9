"""The operations without state, in plain torch: autograd, any device, any float type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plinth.kernels.backend import LinearWeights, NormWeights


class DenseOps:
    """What every torch backend shares; attention (`mix`) is left to those who have a state."""

    def norm(self, x_nd: Tensor, norm: NormWeights) -> Tensor:
        if norm.bias is None:
            return F.rms_norm(x_nd, (x_nd.shape[-1],), norm.weight, norm.eps)
        return F.layer_norm(x_nd, (x_nd.shape[-1],), norm.weight, norm.bias, norm.eps)

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

    def swiglu(self, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        return F.silu(gate_ni) * up_ni

    def gelu(self, x_ni: Tensor) -> Tensor:
        return F.gelu(x_ni, approximate="tanh")


def _affine(x_ni: Tensor, one: LinearWeights) -> Tensor:
    out_no = F.linear(x_ni, one.weight, one.bias)
    return out_no if one.adapter is None else one.adapter.add_to(out_no, x_ni)


def _rotate(x_nhe: Tensor, cos_n1e: Tensor, sin_n1e: Tensor) -> Tensor:
    """Rotate the pairs (i, i + e/2) of each head."""
    low, high = x_nhe.chunk(2, dim=-1)
    return torch.cat((low * cos_n1e - high * sin_n1e, high * cos_n1e + low * sin_n1e), dim=-1)
