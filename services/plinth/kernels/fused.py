"""What lies between the matrix products, each in one pass over memory, with its gradient.

Torch computes a norm, a rotation or a gated activation, and its gradient, as five to ten passes
that write as many tensors. Here each is one C++ kernel forward and one backward: on CPU, in fp32.
Anything else (other devices, other types, autocast) is torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from plinth.kernels.backend import NormWeights
from plinth.kernels.dense import DenseOps
from plinth.kernels.native import kernels


class FusedOps(DenseOps):
    """`DenseOps`, by the kernels where they can."""

    def norm(self, x_nd: Tensor, norm: NormWeights) -> Tensor:
        if norm.bias is not None or not _ours(x_nd, norm.weight):
            return super().norm(x_nd, norm)
        normed: Tensor = _RmsNorm.apply(x_nd.contiguous(), norm.weight.contiguous(), norm.eps)
        return normed

    def rope(
        self, q_nhe: Tensor, k_nke: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not _ours(q_nhe, k_nke, cos_pe, sin_pe):
            return super().rope(q_nhe, k_nke, positions_n, cos_pe, sin_pe)
        table = (positions_n.contiguous(), cos_pe.contiguous(), sin_pe.contiguous())
        return _Rotation.apply(q_nhe, *table), _Rotation.apply(k_nke, *table)

    def swiglu(self, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        if not _ours(gate_ni, up_ni):
            return super().swiglu(gate_ni, up_ni)
        mixed: Tensor = _SwiGlu.apply(gate_ni.contiguous(), up_ni.contiguous())
        return mixed


def _ours(*tensors: Tensor) -> bool:
    return not torch.is_autocast_enabled("cpu") and all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors
    )


class _RmsNorm(Function):
    """x · weight / √(mean x² + eps) over the last axis (Zhang and Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x_nd, weight_d)
        ctx.eps = eps
        out_nd = torch.empty_like(x_nd)
        n, d = x_nd.shape
        weight, out = weight_d.data_ptr(), out_nd.data_ptr()
        kernels().norm(x_nd.data_ptr(), d, n, d, weight, None, eps, out, torch.get_num_threads())
        return out_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor, Tensor, None]:
        x_nd, weight_d = ctx.saved_tensors
        (n, d), threads = x_nd.shape, torch.get_num_threads()
        grad_nd, grad_x_nd = grad_nd.contiguous(), torch.empty_like(x_nd)
        parts_td = torch.empty(threads, d)
        kernels().norm_back(
            x_nd.data_ptr(),
            grad_nd.data_ptr(),
            n,
            d,
            weight_d.data_ptr(),
            ctx.eps,
            grad_x_nd.data_ptr(),
            parts_td.data_ptr(),
            threads,
        )
        return grad_x_nd, parts_td.sum(0), None


class _Rotation(Function):
    """Rotary positions (Su et al. 2021); its gradient is the rotation backwards."""

    @staticmethod
    def forward(
        ctx: Any, x_nhe: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> Tensor:
        ctx.save_for_backward(positions_n, cos_pe, sin_pe)
        return _rotated(x_nhe, positions_n, cos_pe, sin_pe, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nhe: Tensor) -> tuple[Tensor, None, None, None]:
        return _rotated(grad_nhe, *ctx.saved_tensors, -1.0), None, None, None


def _rotated(
    x_nhe: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor, turn: float
) -> Tensor:
    x_nhe = x_nhe.contiguous()
    out_nhe = torch.empty_like(x_nhe)
    n, heads, width = x_nhe.shape
    kernels().rope(
        x_nhe.data_ptr(),
        heads * width,
        n,
        heads,
        width // 2,
        positions_n.data_ptr(),
        cos_pe.data_ptr(),
        sin_pe.data_ptr(),
        turn,
        out_nhe.data_ptr(),
        heads * width,
        torch.get_num_threads(),
    )
    return out_nhe


class _SwiGlu(Function):
    """silu(gate) · up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        ctx.save_for_backward(gate_ni, up_ni)
        out_ni = torch.empty_like(gate_ni)
        n, i = gate_ni.shape
        pointers = (gate_ni.data_ptr(), up_ni.data_ptr())
        kernels().swiglu(*pointers, i, n, i, out_ni.data_ptr(), torch.get_num_threads())
        return out_ni

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ni: Tensor) -> tuple[Tensor, Tensor]:
        gate_ni, up_ni = ctx.saved_tensors
        grad_ni = grad_ni.contiguous()
        grad_gate_ni, grad_up_ni = torch.empty_like(gate_ni), torch.empty_like(up_ni)
        kernels().swiglu_back(
            gate_ni.data_ptr(),
            up_ni.data_ptr(),
            grad_ni.data_ptr(),
            grad_ni.numel(),
            grad_gate_ni.data_ptr(),
            grad_up_ni.data_ptr(),
            torch.get_num_threads(),
        )
        return grad_gate_ni, grad_up_ni
