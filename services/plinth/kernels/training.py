"""Attention over whole sequences with autograd: the backend that training uses.

The flat token axis is B sequences of T tokens, in order. With segment ids, packed documents do
not see one another: a token attends only to earlier tokens of its own segment.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from plinth.kernels.fused import FusedOps, attend, takes


class SdpaBackend(FusedOps):
    """Causal attention: on CPU in fp32 by a kernel that computes nothing it then hides, elsewhere
    by torch's scaled_dot_product_attention."""

    def __init__(self, batch: int, length: int, segments_bt: Tensor | None = None) -> None:
        """`segments_bt` is an integer [B, T], a segment's tokens side by side; None means one
        document per sequence."""
        self.batch, self.length, self.segments_bt = batch, length, segments_bt

    @cached_property
    def mask_b1tt(self) -> Tensor | None:
        """Who sees whom."""
        if self.segments_bt is None:
            return None
        same = self.segments_bt.unsqueeze(2) == self.segments_bt.unsqueeze(1)
        t, device = self.length, self.segments_bt.device
        causal = torch.ones(t, t, dtype=torch.bool, device=device).tril()
        return (same & causal).unsqueeze(1)

    @cached_property
    def firsts_bt(self) -> Tensor | None:
        """Where each token's segment begins in its sequence, int32."""
        if self.segments_bt is None:
            return None
        begins = torch.zeros(self.batch, self.length, dtype=torch.int32)
        changed = self.segments_bt[:, 1:] != self.segments_bt[:, :-1]
        places = torch.arange(1, self.length, dtype=torch.int32)
        begins[:, 1:] = torch.where(changed, places, 0)
        return begins.cummax(dim=1).values.contiguous()

    def mix(self, layer: int, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor) -> Tensor:
        b, t = self.batch, self.length
        if takes(q_nhe, k_nke, v_nke):
            return attend(q_nhe, k_nke, v_nke, b, t, self.firsts_bt)
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
