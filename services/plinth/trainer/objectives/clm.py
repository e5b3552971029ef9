"""Causal language modelling (Bengio et al. 2003; as in Radford et al. 2019).

Documents stand one after another, each closed by an end-of-text token, and are cut into windows
of T + 1 tokens that share one token: predict each from those before it in its window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from plinth.models.decoder import Decoder
from plinth.trainer.data.shards import Split
from plinth.trainer.objectives.batch import Batch, language_loss_sum, plain_positions
from plinth.trainer.objectives.bits_per_byte import evaluate

if TYPE_CHECKING:
    from plinth.trainer.loop.group import Group


class CausalLm:
    """Windows over the training split."""

    def __init__(self, split: Split, validation: Split, sequence_length: int) -> None:
        self._split, self._validation, self._t = split, validation, sequence_length
        self.items = max(0, (split.tokens - 1) // sequence_length)

    def batch(self, items: list[int]) -> Batch:
        t = self._t
        rows = np.stack([self._split.window(item * t, t + 1) for item in items])
        tokens = torch.from_numpy(rows)
        return Batch(
            ids_bt=tokens[:, :-1].contiguous(),
            targets_bt=tokens[:, 1:].contiguous(),
            positions_bt=plain_positions(len(items), t),
        )

    def loss_sum(self, decoder: Decoder, batch: Batch) -> Tensor:
        return language_loss_sum(decoder, batch)

    def prepare(
        self, decoder: Decoder, group: Group, folder: Path, micro: int, used: Sequence[int] | None
    ) -> None:
        """Nothing to do."""

    def evaluate(self, decoder: Decoder, group: Group, micro: int) -> Mapping[str, float]:
        found = evaluate(decoder, self._validation, self._t, micro, group)
        return found.metrics() if found else {}
