"""Attention over whole sequences with autograd: the backend that training uses.

The flat token axis is B sequences of T tokens, in order. With segment ids, packed documents do
not see one another: a token attends only to earlier tokens of its own segment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plinth.kernels.fused import FusedOps, attend, takes
from plinth.kernels.specs import AttentionSpec


class SdpaBackend(FusedOps):
    """Causal attention: on CPU in fp32 by a kernel that computes nothing it then hides, elsewhere
    by torch's scaled_dot_product_attention."""

    def __init__(self, batch: int, length: int, segments_bt: Tensor | None = None) -> None:
        """`segments_bt` is an integer [B, T], a segment's tokens side by side; None means one
        document per sequence."""
        self.batch, self.length, self.segments_bt = batch, length, segments_bt
        # By window, since layers may differ in it.
        self._masks: dict[int, Tensor | None] = {}
        self._firsts: dict[int, Tensor | None] = {}

    def mask_b1tt(self, window: int) -> Tensor | None:
        """Who sees whom; None: all before it."""
        if window not in self._masks:
            self._masks[window] = self._mask_of(window)
        return self._masks[window]

    def _mask_of(self, window: int) -> Tensor | None:
        segments, t = self.segments_bt, self.length
        if segments is None and not 0 < window < t:
            return None
        device = None if segments is None else segments.device
        seen = torch.ones(t, t, dtype=torch.bool, device=device).tril()
        if window:
            seen = seen.triu(1 - window)
        if segments is None:
            return seen.view(1, 1, t, t)
        return (seen & (segments.unsqueeze(2) == segments.unsqueeze(1))).unsqueeze(1)

    def firsts_bt(self, window: int) -> Tensor | None:
        """The first token of its sequence that each one sees, int32; None: of all the first."""
        if window not in self._firsts:
            self._firsts[window] = self._firsts_of(window)
        return self._firsts[window]

    def _firsts_of(self, window: int) -> Tensor | None:
        begins = None
        if self.segments_bt is not None:
            begins = torch.zeros(self.batch, self.length, dtype=torch.int32)
            changed = self.segments_bt[:, 1:] != self.segments_bt[:, :-1]
            places = torch.arange(1, self.length, dtype=torch.int32)
            begins[:, 1:] = torch.where(changed, places, 0)
            begins = begins.cummax(dim=1).values
        if 0 < window < self.length:
            edges = torch.arange(1 - window, self.length + 1 - window, dtype=torch.int32).clamp(0)
            wide = edges.expand(self.batch, self.length)
            begins = wide if begins is None else torch.maximum(begins, wide)
        return None if begins is None else begins.contiguous()

    def mix(self, spec: AttentionSpec, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor) -> Tensor:
        b, t, window = self.batch, self.length, spec.state.window
        if takes(q_nhe, k_nke, v_nke):
            return attend(spec, q_nhe, k_nke, v_nke, b, t, self.firsts_bt(window))
        heads, kv_heads, width = q_nhe.shape[1], k_nke.shape[1], q_nhe.shape[2]
        q = q_nhe.view(b, t, heads, width).transpose(1, 2)
        k = k_nke.view(b, t, kv_heads, width).transpose(1, 2)
        v = v_nke.view(b, t, kv_heads, width).transpose(1, 2)
        if kv_heads != heads:
            k = k.repeat_interleave(heads // kv_heads, dim=1)
            v = v.repeat_interleave(heads // kv_heads, dim=1)
        mask = self.mask_b1tt(window)
        mask = None if mask is None else mask.to(q.device)
        if spec.cap:
            mixed = _capped(spec, q, k, v, mask)
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale
            )
        return mixed.transpose(1, 2).reshape(b * t, heads * width)


def _capped(
    spec: AttentionSpec, q_bhte: Tensor, k_bhte: Tensor, v_bhte: Tensor, mask: Tensor | None
) -> Tensor:
    """The same with capped scores, which torch's attention has not."""
    scores = spec.cap * torch.tanh(q_bhte @ k_bhte.transpose(2, 3) * (spec.scale / spec.cap))
    if mask is None:
        t = q_bhte.shape[2]
        mask = torch.ones(t, t, dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v_bhte
