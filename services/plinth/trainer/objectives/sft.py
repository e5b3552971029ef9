"""Supervised fine-tuning on chats (Ouyang et al. 2022, step 1): learn the answers only.

Conversations are packed into sequences of T, best fit, without seeing one another: attention
is block-diagonal by segment and positions begin anew. Padding is a segment of its own and never
learnt. A conversation longer than T + 1 tokens keeps its beginning; one of which no answer is
left is dropped (`data/lengths.py` counts and tells them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from plinth.models.decoder import Decoder
from plinth.trainer.data.lengths import learnable
from plinth.trainer.data.packing import best_fit
from plinth.trainer.data.sampler import Shuffle
from plinth.trainer.data.shards import Split
from plinth.trainer.objectives.batch import Batch, language_loss_sum
from plinth.trainer.objectives.bits_per_byte import evaluate

if TYPE_CHECKING:
    from plinth.trainer.loop.group import Group


class SupervisedFineTuning:
    """Packed conversations of the training split."""

    def __init__(
        self, split: Split, validation: Split, sequence_length: int, seed: int, pad_id: int
    ) -> None:
        self._split, self._validation = split, validation
        self._t, self._pad = sequence_length, pad_id
        self._packs = self._pack(seed)
        self.items = len(self._packs)

    def _pack(self, seed: int) -> list[list[int]]:
        """Packs are fixed for the whole run; the sampler shuffles whole packs."""
        if not self._split.documents:
            return []
        order = Shuffle(self._split.documents, seed, 0)(np.arange(self._split.documents))
        fitting = []
        for number in order.tolist():
            ids, mask = self._split.document(number)
            if learnable(mask, self._t):
                fitting.append((number, min(len(ids) - 1, self._t)))
        return best_fit(fitting, self._t)

    def batch(self, items: list[int]) -> Batch:
        b, t = len(items), self._t
        ids = np.full((b, t), self._pad, np.int64)
        targets = np.full((b, t), self._pad, np.int64)
        positions = np.zeros((b, t), np.int64)
        learn = np.zeros((b, t), bool)
        segments = np.zeros((b, t), np.int64)  # 0 is padding
        lengths = np.zeros((b, t), np.int64)
        for row, item in enumerate(items):
            at = 0
            for segment, number in enumerate(self._packs[item], 1):
                tokens, mask = self._split.document(number)
                n = min(len(tokens) - 1, t)
                here = slice(at, at + n)
                ids[row, here], targets[row, here] = tokens[:n], tokens[1 : n + 1]
                learn[row, here] = mask[1 : n + 1].astype(bool)
                positions[row, here], segments[row, here] = np.arange(n), segment
                lengths[row, here] = n
                at += n
        arrays = (ids, targets, positions, learn, segments, lengths)
        return Batch(*(torch.from_numpy(a) for a in arrays))

    def loss_sum(self, decoder: Decoder, batch: Batch) -> Tensor:
        return language_loss_sum(decoder, batch)

    def prepare(
        self, decoder: Decoder, group: Group, folder: Path, micro: int, used: Sequence[int] | None
    ) -> None:
        """Nothing to do."""

    def evaluate(self, decoder: Decoder, group: Group, micro: int) -> Mapping[str, float]:
        found = evaluate(decoder, self._validation, self._t, micro, group)
        return found.metrics() if found else {}
