"""The kernels that training adds, as functions of tensors: the door as `calls` is.

Legend: n rows, d width, h heads, k KV heads, e head width, B sequences of T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plinth.kernels import arguments
from plinth.kernels.arguments import exact, heads, matrix
from plinth.kernels.library import kernels


def norm_back(
    x_nd: Tensor, grad_nd: Tensor, weight_d: Tensor, eps: float, threads: int
) -> tuple[Tensor, Tensor]:
    """The gradients of RMSNorm: of x, [n, d], and of its weight, [d]."""
    n, d, _ = matrix("norm_back", "x", x_nd)
    x, grad = exact("norm_back", "x", x_nd, (n, d)), exact("norm_back", "grad", grad_nd, (n, d))
    weight = exact("norm_back", "weight", weight_d, (d,))
    arguments.whole_number("norm_back", "threads", threads, 1)
    grad_x_nd, parts_td = torch.empty(n, d), torch.empty(threads, d)
    kernels().norm_back(
        *(x.data_ptr(), grad.data_ptr(), n, d, weight.data_ptr(), eps),
        *(grad_x_nd.data_ptr(), parts_td.data_ptr(), threads),
    )
    return grad_x_nd, parts_td.sum(0)


def swiglu_back(
    gate_ni: Tensor, up_ni: Tensor, grad_ni: Tensor, threads: int
) -> tuple[Tensor, Tensor]:
    """The gradients of silu(gate) * up: of gate and of up, both [n, i]."""
    n, i, _ = matrix("swiglu_back", "gate", gate_ni)
    named = {"gate": gate_ni, "up": up_ni, "grad": grad_ni}
    inputs = [exact("swiglu_back", name, x, (n, i)).data_ptr() for name, x in named.items()]
    grad_gate_ni, grad_up_ni = torch.empty(n, i), torch.empty(n, i)
    kernels().swiglu_back(*inputs, n * i, grad_gate_ni.data_ptr(), grad_up_ni.data_ptr(), threads)
    return grad_gate_ni, grad_up_ni


def attend_whole(
    q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor, b: int, t: int, firsts_bt: Tensor | None,
    scale: float, cap: float, threads: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Causal attention within B sequences, scores times `scale` and, unless that is 0, within
    ±`cap`: [n, h * e], and the logarithm of each softmax's
    denominator, [B, h, T]. `firsts_bt`, int32 [B, T]: the first token that each one sees."""
    shape = _shape("attend_whole", q_nhe, k_nke, v_nke, b, t, firsts_bt)
    h, e = shape[2], shape[4]
    out_nd, lse_bht = torch.empty(b * t, h * e), torch.empty(b, h, t)
    kernels().attend_whole(
        *(q_nhe.data_ptr(), k_nke.data_ptr(), v_nke.data_ptr(), _pointer(firsts_bt), *shape),
        *(scale, cap, out_nd.data_ptr(), lse_bht.data_ptr(), threads),
    )
    return out_nd, lse_bht


def attend_whole_back(
    q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor, b: int, t: int, firsts_bt: Tensor | None,
    scale: float, cap: float, out_nd: Tensor, lse_bht: Tensor, grad_nd: Tensor, threads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v, by what `attend_whole` returned."""
    shape = _shape("attend_whole_back", q_nhe, k_nke, v_nke, b, t, firsts_bt)
    h, e = shape[2], shape[4]
    exact("attend_whole_back", "out", out_nd, (b * t, h * e))
    exact("attend_whole_back", "lse", lse_bht, (b, h, t))
    exact("attend_whole_back", "grad", grad_nd, (b * t, h * e))
    grads = (torch.empty_like(q_nhe), torch.empty_like(k_nke), torch.empty_like(v_nke))
    kernels().attend_whole_back(
        *(q_nhe.data_ptr(), k_nke.data_ptr(), v_nke.data_ptr(), _pointer(firsts_bt)),
        *(out_nd.data_ptr(), lse_bht.data_ptr(), grad_nd.data_ptr(), *shape, scale, cap),
        *(*(grad.data_ptr() for grad in grads), threads),
    )
    return grads


def _shape(
    kernel: str, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor, b: int, t: int,
    firsts_bt: Tensor | None,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    """(B, T, h, k, e) of arguments that agree."""
    arguments.whole_number(kernel, "b", b, 0)
    arguments.whole_number(kernel, "t", t, 0)
    _, h, e, _ = heads(kernel, "q", q_nhe)
    _, kv_heads, _, _ = heads(kernel, "k", k_nke)
    exact(kernel, "q", q_nhe, (b * t, h, e))
    exact(kernel, "k", k_nke, (b * t, kv_heads, e))
    exact(kernel, "v", v_nke, (b * t, kv_heads, e))
    arguments.grouped(kernel, "q", h, kv_heads)
    if firsts_bt is not None:
        arguments.segments(kernel, "firsts", firsts_bt, b, t)
    return b, t, h, kv_heads, e


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
