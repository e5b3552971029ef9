"""Attention over whole sequences with autograd: the backend that training uses.

The flat token axis is B sequences of T tokens, in order. With segment ids, packed documents do
not see one another: a token attends only to earlier tokens of its own segment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plinth.kernels.fused import FusedOps


class SdpaBackend(FusedOps):
    """Causal attention through torch's scaled_dot_product_attention."""

    def __init__(self, batch: int, length: int, segments_bt: Tensor | None = None) -> None:
        """`segments_bt` is an integer [B, T]; None means one document per sequence."""
        self.batch, self.length = batch, length
        self.mask_b1tt: Tensor | None = None
        if segments_bt is not None:
            same = segments_bt.unsqueeze(2) == segments_bt.unsqueeze(1)
            causal = torch.ones(length, length, dtype=torch.bool, device=segments_bt.device).tril()
            self.mask_b1tt = (same & causal).unsqueeze(1)

    def mix(self, layer: int, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor) -> Tensor:
        b, t = self.batch, self.length
        heads, kv_heads, width = q_nhe.shape[1], k_nke.shape[1], q_nhe.shape[2]
        q = q_nhe.view(b, t, heads, width).transpose(1, 2)
        k = k_nke.view(b, t, kv_heads, width).transpose(1, 2)
        v = v_nke.view(b, t, kv_heads, width).transpose(1, 2)
        if kv_heads != heads:
            k = k.repeat_interleave(heads // kv_heads, dim=1)
            v = v.repeat_interleave(heads // kv_heads, dim=1)
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.mask_b1tt, is_causal=self.mask_b1tt is None
        )
        return mixed.transpose(1, 2).reshape(b * t, heads * width)
