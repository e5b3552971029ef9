"""What lies between the matrix products, attention included, with its gradients.

Torch computes a norm, a rotation or a gated activation, and its gradient, as five to ten passes
that write as many tensors. Here each is one C++ kernel forward and one backward: on CPU, in fp32.
Attention computes neither what its mask would hide nor a mask.
Anything else (other devices, other types, autocast) is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
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
        if norm.bias is not None or not takes(x_nd, norm.weight):
            return super().norm(x_nd, norm)
        return _rms_norm(x_nd.contiguous(), norm.weight.contiguous(), norm.eps)

    def rope(
        self, q_nhe: Tensor, k_nke: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not takes(q_nhe, k_nke, cos_pe, sin_pe):
            return super().rope(q_nhe, k_nke, positions_n, cos_pe, sin_pe)
        table = (positions_n.contiguous(), cos_pe.contiguous(), sin_pe.contiguous())
        return _rotation(q_nhe, *table), _rotation(k_nke, *table)

    def swiglu(self, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        if not takes(gate_ni, up_ni):
            return super().swiglu(gate_ni, up_ni)
        return _swiglu(gate_ni.contiguous(), up_ni.contiguous())


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels can."""
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
        x, weight, out = _pointers(x_nd, weight_d, out_nd)
        kernels().norm(x, d, n, d, weight, None, eps, out, torch.get_num_threads())
        return out_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor, Tensor, None]:
        x_nd, weight_d = ctx.saved_tensors
        (n, d), threads = x_nd.shape, torch.get_num_threads()
        grad_nd, grad_x_nd = grad_nd.contiguous(), torch.empty_like(x_nd)
        parts_td = torch.empty(threads, d)
        x, grad, weight, grad_x, parts = _pointers(x_nd, grad_nd, weight_d, grad_x_nd, parts_td)
        kernels().norm_back(x, grad, n, d, weight, ctx.eps, grad_x, parts, threads)
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
        positions_n, cos_pe, sin_pe = ctx.saved_tensors
        return _rotated(grad_nhe, positions_n, cos_pe, sin_pe, -1.0), None, None, None


def _rotated(
    x_nhe: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor, turn: float
) -> Tensor:
    x_nhe = x_nhe.contiguous()
    out_nhe = torch.empty_like(x_nhe)
    n, heads, width = x_nhe.shape
    x, out, *tables = _pointers(x_nhe, out_nhe, positions_n, cos_pe, sin_pe)
    row, threads = heads * width, torch.get_num_threads()
    kernels().rope(x, row, n, heads, width // 2, *tables, turn, out, row, threads)
    return out_nhe


class _SwiGlu(Function):
    """silu(gate) · up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        ctx.save_for_backward(gate_ni, up_ni)
        out_ni = torch.empty_like(gate_ni)
        n, i = gate_ni.shape
        gate, up, out = _pointers(gate_ni, up_ni, out_ni)
        kernels().swiglu(gate, up, i, n, i, out, torch.get_num_threads())
        return out_ni

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ni: Tensor) -> tuple[Tensor, Tensor]:
        gate_ni, up_ni = ctx.saved_tensors
        grad_ni = grad_ni.contiguous()
        grad_gate_ni, grad_up_ni = torch.empty_like(gate_ni), torch.empty_like(up_ni)
        size, threads = grad_ni.numel(), torch.get_num_threads()
        grads = _pointers(grad_gate_ni, grad_up_ni)
        kernels().swiglu_back(*_pointers(gate_ni, up_ni, grad_ni), size, *grads, threads)
        return grad_gate_ni, grad_up_ni


def attend(
    q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor, b: int, t: int, firsts_bt: Tensor | None
) -> Tensor:
    """Causal attention within each of B sequences of T tokens, [n, h * e], scaled by e^-0.5.

    `firsts_bt`, int32 [B, T]: the first token of its sequence that each one sees; it may only grow
    along a sequence. None: all before it.
    """
    inputs = (q_nhe.contiguous(), k_nke.contiguous(), v_nke.contiguous())
    return _attention(*inputs, b, t, firsts_bt)


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_nhe: Tensor,
        k_nke: Tensor,
        v_nke: Tensor,
        b: int,
        t: int,
        firsts_bt: Tensor | None,
    ) -> Tensor:
        _, heads, width = q_nhe.shape
        out_nd, lse_bht = torch.empty(b * t, heads * width), torch.empty(b, heads, t)
        ctx.shape = (b, t, heads, k_nke.shape[1], width, width**-0.5)
        kernels().attend_whole(
            *_pointers(q_nhe, k_nke, v_nke, firsts_bt),
            *ctx.shape,
            *_pointers(out_nd, lse_bht),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(q_nhe, k_nke, v_nke, firsts_bt, out_nd, lse_bht)
        return out_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads = tuple(torch.empty_like(x) for x in saved[:3])
        kernels().attend_whole_back(
            *_pointers(*saved, grad_nd.contiguous()),
            *ctx.shape,
            *_pointers(*grads),
            torch.get_num_threads(),
        )
        return (*grads, None, None, None)


def _pointers(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)


# Torch does not say what `apply` takes and gives.
_rms_norm: Callable[..., Tensor] = _RmsNorm.apply
_rotation: Callable[..., Tensor] = _Rotation.apply
_swiglu: Callable[..., Tensor] = _SwiGlu.apply
_attention: Callable[..., Tensor] = _Attention.apply
