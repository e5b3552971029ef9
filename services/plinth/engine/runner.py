"""Carries out a plan on one model and one paged cache: rows in, logits out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plinth.engine.plan import Plan, Row
from plinth.kernels.backend import Backend
from plinth.kernels.native import NativeBackend, PackedWeights
from plinth.kernels.paged import KvCache, PagedBatch
from plinth.kernels.race import log_normalisers
from plinth.kernels.reference import ReferenceBackend
from plinth.models.adapters.lora import merged_tensors
from plinth.models.decoder import Decoder
from plinth.models.weights import weights_digest

# Rows of logits made at a time when a long prompt is scored: 64 × 50k × 4 bytes = 13 MB.
_SCORE_ROWS = 64


@dataclass(frozen=True)
class RowResult:
    """Logits [outputs, vocab] after the row's last positions, and scores of its own tokens.

    finite: whether the hidden states of all its tokens are, and so what they left in the cache.
    """

    logits_mv: Tensor | None
    scores: list[float]
    finite: bool = True


class Runner:
    """One decoder with its cache. fp32 on CPU uses the C++ kernels; all else the reference."""

    def __init__(self, decoder: Decoder, cache: KvCache, *, native: bool = True) -> None:
        self.decoder, self.cache = decoder, cache
        self.device = cache.keys[0].device
        on_cpu = self.device.type == "cpu" and cache.keys[0].dtype == torch.float32
        self._backend: Callable[[PagedBatch], Backend]
        self.native = native and on_cpu
        self._packed = packed = PackedWeights()
        if self.native:
            self._backend = lambda batch: NativeBackend(packed, cache, batch)
        else:
            self._backend = lambda batch: ReferenceBackend(cache, batch)

    def renew_weights(self) -> str:
        """Take the decoder's present values; their digest. It names what is computed: a decoder
        with adapters has the digest of the model that they are merged into."""
        self._packed.renew()
        return weights_digest(merged_tensors(self.decoder))

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[RowResult]:
        """Compute all rows in one pass; a result per row, in order."""
        return self.run_rows(plan.rows)

    @torch.inference_mode()
    def run_rows(self, rows: Sequence[Row]) -> list[RowResult]:
        """The same for bare rows (drafters have no plan)."""
        batch = PagedBatch.build(
            [(row.start, len(row.tokens), row.tables) for row in rows],
            self.cache.block_size,
            self.device,
        )
        ids = [token for row in rows for token in row.tokens]
        ids_n = torch.tensor(ids, dtype=torch.int64, device=self.device)
        backend = self._backend(batch)
        hidden_nd = self.decoder(ids_n, self._positions(rows, batch), backend)
        wanted: list[int] = []
        end = 0
        for row in rows:
            end += len(row.tokens)
            wanted += range(end - row.outputs, end)
        logits = self._logits(hidden_nd, wanted, backend) if wanted else None
        # A sum is finite only if all its terms are (after the last norm they are too small for it
        # to overflow).
        sums = hidden_nd.float().sum(-1).tolist()
        results, taken, first = [], 0, 0
        for row in rows:
            part = None
            if logits is not None and row.outputs:
                part = logits[taken : taken + row.outputs]
                taken += row.outputs
            scores = self._scores(hidden_nd, row, first, backend) if row.targets else []
            end = first + len(row.tokens)
            results.append(RowResult(part, scores, all(map(math.isfinite, sums[first:end]))))
            first = end
        return results

    def _positions(self, rows: Sequence[Row], batch: PagedBatch) -> Tensor:
        """Rows of the rotary tables, by which the tokens turn."""
        if not any(row.long for row in rows):
            return batch.positions_n
        context = self.decoder.config.context
        offsets = [context if row.long else 0 for row in rows for _ in row.tokens]
        return batch.positions_n + torch.tensor(offsets, device=self.device)

    def _logits(self, hidden_nd: Tensor, rows: list[int], backend: Backend) -> Tensor:
        picked = hidden_nd if len(rows) == hidden_nd.shape[0] else hidden_nd[rows]
        return self.decoder.logits(picked.contiguous(), backend).float()

    def _scores(self, hidden_nd: Tensor, row: Row, first: int, backend: Backend) -> list[float]:
        """log p of the row's targets, a few rows of logits at a time."""
        scores: list[float] = []
        for low in range(0, len(row.targets), _SCORE_ROWS):
            targets = torch.tensor(row.targets[low : low + _SCORE_ROWS], device=self.device)
            begin = first + row.targets_at + low
            logits = self._logits(hidden_nd, list(range(begin, begin + len(targets))), backend)
            picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
            chosen = picked - log_normalisers(logits)
            scores += chosen.tolist()
        return scores
