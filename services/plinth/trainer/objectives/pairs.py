"""Preference pairs as batches: each pair is two sequences, the preferred answer first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder
from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.shards import Ids, Mask, Split

_FEWEST = 4  # sequences that are computed together
MAX_JUDGED = 512  # held-out pairs: the interval of a share is then within 4.4 points


@dataclass(frozen=True)
class PairOptions:
    """How pairs are learned from. Which fields count is the objective's business."""

    beta: float = 0.1  # DPO: how dear it is to leave the reference
    loss: str = "sigmoid"  # DPO: or "ipo"
    label_smoothing: float = 0.0  # both: the share of labels that are wrong
    likelihood_weight: float = 0.0  # DPO: of the preferred answer's loss per token
    # DPO: nats per token that the held-out preferred answers may lose in themselves; 0: any.
    max_chosen_drop: float = 2.0
    centring: float = 0.0  # reward: pins the mean score to zero
    margin: float = 0.0  # reward: of the ranking loss, see `bradley_terry_loss`


@dataclass(frozen=True)
class PairBatch:
    """2B sequences: rows 0 … B-1 are preferred, rows B … 2B-1 the others, right-padded to T.

    `answer_bt` marks the answer's tokens; `last_b` is the position of each sequence's last token.
    """

    numbers: list[int]  # of the pairs, in their split
    ids_bt: Tensor
    answer_bt: Tensor
    last_b: Tensor

    @property
    def weight(self) -> int:
        """What the loss is averaged over: pairs."""
        return len(self.numbers)

    @property
    def tokens(self) -> int:
        """Tokens that are read."""
        return int(self.last_b.sum()) + len(self.last_b)

    def alike(self) -> list[Tensor]:
        """Rows in groups of like length, where computing padding costs more than small groups do:
        on a CPU, and where a quarter of the tokens is padding."""
        rows = len(self.last_b)
        if self.ids_bt.is_cuda or 4 * self.tokens > 3 * self.ids_bt.numel():
            return [torch.arange(rows, device=self.ids_bt.device)]
        return list(torch.split(self.last_b.argsort(stable=True), max(_FEWEST, rows // 4)))

    def to(self, device: str) -> PairBatch:
        """The same on another device."""
        moved = (tensor.to(device) for tensor in (self.ids_bt, self.answer_bt, self.last_b))
        return PairBatch(self.numbers, *moved)


class Pairs:
    """The pairs of a split that fit into `longest` tokens; `data/lengths.py` tells of others."""

    def __init__(self, split: Split, longest: int, pad_id: int) -> None:
        self._split, self._pad = split, pad_id
        lengths = split.lengths().reshape(-1, 2).max(axis=1)
        self.numbers = np.flatnonzero(lengths <= longest).tolist()
        if not self.numbers and len(lengths):
            raise InvalidArgument(
                f"none of {len(lengths)} pairs fits into {longest} tokens; the shortest needs "
                f"{int(lengths.min())}: raise sequence_length",
                field="sequence_length",
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, items: list[int]) -> PairBatch:
        """The pairs at these indices of `numbers`."""
        numbers = [self.numbers[item] for item in items]
        rows = [
            _upto_answer(*self._split.document(2 * n + side)) for side in (0, 1) for n in numbers
        ]
        width = max(len(ids) for ids, _ in rows)
        ids_bt = np.full((len(rows), width), self._pad, np.int64)
        answer_bt = np.zeros(ids_bt.shape, bool)
        for row, (ids, mask) in enumerate(rows):
            ids_bt[row, : len(ids)], answer_bt[row, : len(ids)] = ids, mask
        last_b = np.array([len(ids) - 1 for ids, _ in rows])
        return PairBatch(numbers, *(torch.from_numpy(a) for a in (ids_bt, answer_bt, last_b)))

    def judged(self) -> range:
        """The items that an evaluation looks at."""
        return range(min(len(self), MAX_JUDGED))


def _upto_answer(ids: Ids, mask: Mask) -> tuple[Ids, Mask]:
    """Without what a template puts after an answer: a policy's answers end where they end."""
    end = int(np.flatnonzero(mask)[-1]) + 1
    return ids[:end], mask[:end]


def pieces(items: Sequence[int], size: int) -> list[list[int]]:
    """In order, `size` at a time."""
    return [list(items[low : low + size]) for low in range(0, len(items), size)]


def answer_logprobs(decoder: Decoder, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """(sum over the answer of log p, its tokens), each [2B]. Padding comes last: it is not seen."""
    parts = batch.alike()
    sums_b = torch.cat([_sums(decoder, batch, rows_b) for rows_b in parts])
    return sums_b[torch.cat(parts).argsort()], batch.answer_bt[:, 1:].sum(1)


def _sums(decoder: Decoder, batch: PairBatch, rows_b: Tensor) -> Tensor:
    """Of some rows, as wide as the longest of them."""
    width = int(batch.last_b[rows_b].max()) + 1
    ids_bt, answer_bt = batch.ids_bt[rows_b, :width], batch.answer_bt[rows_b, :width]
    inputs_bt, targets_bt = ids_bt[:, :-1], ids_bt[:, 1:]
    b, t = inputs_bt.shape
    backend = SdpaBackend(b, t)
    positions_n = decoder.positions(batch.last_b[rows_b] + 1, t)
    rows_m = answer_bt[:, 1:].reshape(-1).nonzero().squeeze(1)
    hidden_md = decoder(inputs_bt.reshape(-1), positions_n, backend, rows_m)
    logits_mv = decoder.logits(hidden_md, backend)
    targets_m = targets_bt.reshape(-1).index_select(0, rows_m)
    logp_m = -F.cross_entropy(logits_mv.float(), targets_m, reduction="none")
    return logp_m.new_zeros(b).index_add(0, rows_m // t, logp_m)
