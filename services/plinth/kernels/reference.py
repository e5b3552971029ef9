"""Paged attention in plain torch: slow, any device, any float type; the truth for the others."""

from __future__ import annotations

import torch
from torch import Tensor

from plinth.kernels.dense import DenseOps
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.specs import AttentionSpec


class ReferenceBackend(DenseOps):
    """Writes the rows' keys and values to their slots, then attends sequence by sequence.

    Raises `arguments.ArgumentError` for a batch whose rows, blocks or slots lie outside of the
    cache.
    """

    def __init__(self, cache: KvCache, batch: PagedBatch) -> None:
        batch.check(cache)
        self.cache, self.batch = cache, batch

    def mix(self, spec: AttentionSpec, q_nhe: Tensor, k_nke: Tensor, v_nke: Tensor) -> Tensor:
        keys, values = self.cache.keys[spec.layer], self.cache.values[spec.layer]
        size, batch = self.cache.block_size, self.batch
        group = batch.tables[self.cache.group_of[spec.layer]]
        blocks, offsets = group.slots_n // size, group.slots_n % size
        keys[blocks, :, :, offsets] = k_nke.to(keys.dtype)
        values[blocks, :, offsets, :] = v_nke.to(values.dtype)
        shared = q_nhe.shape[1] // k_nke.shape[1]
        out = torch.empty_like(q_nhe)
        columns = (batch.firsts_q, batch.counts_q, batch.starts_q, group.skipped_q)
        runs = zip(*(column_q.tolist() for column_q in columns), strict=True)
        for i, (first, count, start, skipped) in enumerate(runs):
            # Positions are counted from the first that the table still has.
            begin = start - skipped * size
            reach = begin + count
            table = group.table_qb[i, : -(-reach // size)].long().to(keys.device)
            k_ket = keys[table].permute(1, 2, 0, 3).flatten(2)[..., :reach]
            v_kte = values[table].permute(1, 0, 2, 3).flatten(1, 2)[:, :reach]
            q_hce = q_nhe[first : first + count].transpose(0, 1)
            scores_hct = (q_hce * spec.scale) @ k_ket.repeat_interleave(shared, 0)
            if spec.cap:
                scores_hct = spec.cap * torch.tanh(scores_hct / spec.cap)
            hidden = torch.ones(count, reach, dtype=torch.bool, device=keys.device).triu(begin + 1)
            if window := spec.state.window:
                hidden |= torch.ones_like(hidden).tril(begin - window)
            weights = scores_hct.masked_fill(hidden, float("-inf")).softmax(-1)
            # What no row sees may be another sequence's by now, or not a number.
            v_kte = v_kte.masked_fill(hidden.all(0)[:, None], 0.0)
            mixed_hce = weights @ v_kte.repeat_interleave(shared, 0)
            out[first : first + count] = mixed_hce.transpose(0, 1)
        return out.flatten(1)
