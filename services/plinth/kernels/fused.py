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

from plinth.kernels import calls, gradients
from plinth.kernels.backend import NormWeights
from plinth.kernels.dense import DenseOps
from plinth.kernels.specs import Activation, AttentionSpec


class FusedOps(DenseOps):
    """`DenseOps`, by the kernels where they can."""

    def norm(self, x_nd: Tensor, norm: NormWeights) -> Tensor:
        if norm.bias is not None or not takes(x_nd, norm.gain):
            return super().norm(x_nd, norm)
        return _rms_norm(x_nd.contiguous(), norm.gain.contiguous(), norm.eps)

    def rope(
        self, q_nhe: Tensor, k_nke: Tensor, positions_n: Tensor, cos_pe: Tensor, sin_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not takes(q_nhe, k_nke, cos_pe, sin_pe):
            return super().rope(q_nhe, k_nke, positions_n, cos_pe, sin_pe)
        table = (positions_n.contiguous(), cos_pe.contiguous(), sin_pe.contiguous())
        return _rotation(q_nhe, *table), _rotation(k_nke, *table)

    def gate(self, activation: Activation, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        if activation != "silu" or not takes(gate_ni, up_ni):
            return super().gate(activation, gate_ni, up_ni)
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
        return calls.norm(x_nd, weight_d, None, eps, torch.get_num_threads())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor, Tensor, None]:
        x_nd, weight_d = ctx.saved_tensors
        given = (x_nd, grad_nd.contiguous(), weight_d, ctx.eps)
        return *gradients.norm_back(*given, torch.get_num_threads()), None


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
    rotation = calls.Rotation(positions_n, cos_pe, sin_pe)
    rotation.turn(x_nhe, out_nhe, turn, torch.get_num_threads())
    return out_nhe


class _SwiGlu(Function):
    """silu(gate) · up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate_ni: Tensor, up_ni: Tensor) -> Tensor:
        ctx.save_for_backward(gate_ni, up_ni)
        return calls.gate("silu", gate_ni, up_ni, torch.get_num_threads())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ni: Tensor) -> tuple[Tensor, Tensor]:
        gate_ni, up_ni = ctx.saved_tensors
        threads = torch.get_num_threads()
        return gradients.swiglu_back(gate_ni, up_ni, grad_ni.contiguous(), threads)


def attend(
    spec: AttentionSpec,
    q_nhe: Tensor,
    k_nke: Tensor,
    v_nke: Tensor,
    b: int,
    t: int,
    firsts_bt: Tensor | None,
) -> Tensor:
    """Causal attention within each of B sequences of T tokens, [n, h * e], with the scale and the
    cap of `spec`.

    `firsts_bt`, int32 [B, T]: the first token of its sequence that each one sees; it may only grow
    along a sequence. None: all before it.
    """
    inputs = (q_nhe.contiguous(), k_nke.contiguous(), v_nke.contiguous())
    return _attention(*inputs, b, t, firsts_bt, spec.scale, spec.cap)


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
        scale: float,
        cap: float,
    ) -> Tensor:
        inputs, threads = (q_nhe, k_nke, v_nke, b, t, firsts_bt), torch.get_num_threads()
        out_nd, lse_bht = gradients.attend_whole(*inputs, scale, cap, threads)
        ctx.numbers = (b, t, scale, cap)
        ctx.save_for_backward(q_nhe, k_nke, v_nke, firsts_bt, out_nd, lse_bht)
        return out_nd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor | None, ...]:
        q_nhe, k_nke, v_nke, firsts_bt, out_nd, lse_bht = ctx.saved_tensors
        b, t, scale, cap = ctx.numbers
        grad_nd, threads = grad_nd.contiguous(), torch.get_num_threads()
        grads = gradients.attend_whole_back(
            *(q_nhe, k_nke, v_nke, b, t, firsts_bt, scale, cap),
            *(out_nd, lse_bht, grad_nd, threads),
        )
        return (*grads, None, None, None, None, None)


# Torch does not say what `apply` takes and gives.
_rms_norm: Callable[..., Tensor] = _RmsNorm.apply
_rotation: Callable[..., Tensor] = _Rotation.apply
_swiglu: Callable[..., Tensor] = _SwiGlu.apply
_attention: Callable[..., Tensor] = _Attention.apply
