"""Bits per byte on held-out documents.

Each document is scored alone from its beginning, in windows of T + 1 tokens, of which T are read
(`plinth.algos.windows`, as the coordinator's `scoring.py` does with a served model). What is
counted is what people wrote: for plain text all tokens but the closing end-of-text, conditioned on
one before the document; for chats the assistant's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from plinth.algos.windows import windows
from plinth.models.decoder import Decoder
from plinth.trainer.data.shards import Split
from plinth.trainer.objectives.batch import Batch, nll_sum, plain_positions

if TYPE_CHECKING:
    from plinth.trainer.loop.group import Group

MAX_TOKENS = 128 * 1024  # scored at most; documents come in the order of the split


@dataclass(frozen=True)
class Evaluation:
    """Held-out figures over `tokens` targets that stand for `bytes` UTF-8 bytes."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def metrics(self) -> dict[str, float]:
        """By name, for a report."""
        return {"validation_loss": self.loss, "validation_bits_per_byte": self.bits_per_byte}


@dataclass(frozen=True)
class _Window:
    ids_t1: NDArray[np.int64]  # up to T + 1 tokens
    learn_t: NDArray[np.bool_]  # which of the targets count


def evaluate(
    decoder: Decoder, split: Split, length: int, batch: int, group: Group
) -> Evaluation | None:
    """None where nothing was held out. Windows are dealt to the workers in turn."""
    parts, counted, size = _windows(split, length)
    if not counted or not size:
        return None
    nats = 0.0
    with group.patiently(), torch.no_grad():
        for number, start in enumerate(range(0, len(parts), batch)):
            if number % group.world == group.rank:
                rows = _stack(parts[start : start + batch], length).to(group.device)
                nats += float(nll_sum(decoder, rows))
    (nats,) = group.sum([nats])
    return Evaluation(nats, counted, size)


def _windows(split: Split, length: int) -> tuple[list[_Window], int, int]:
    parts: list[_Window] = []
    counted = size = 0
    sizes = split.document_bytes
    assert sizes is not None
    for number in range(split.documents):
        if counted >= MAX_TOKENS:
            break
        ids, mask = split.document(number)
        if split.info.form == "text":
            ids = np.concatenate(([split.info.end_of_text_id], ids[:-1]))
            mask = np.ones(len(ids), np.uint8)
        here = list(_of_document(ids, mask, length))
        parts.extend(here)
        counted += sum(int(w.learn_t.sum()) for w in here)
        size += int(sizes[number])
    return parts, counted, size


def _of_document(ids: NDArray[np.int64], mask: NDArray[np.uint8], length: int) -> Iterator[_Window]:
    for window in windows(len(ids), length + 1):
        learn = mask[window.start + 1 : window.end].astype(bool)
        learn[: window.first - window.start - 1] = False
        if learn.any():
            yield _Window(ids[window.start : window.end], learn)


def _stack(parts: list[_Window], length: int) -> Batch:
    """Right-padded to T: attention is causal, so padding is never seen."""
    b = len(parts)
    ids, targets = (np.zeros((b, length), np.int64) for _ in range(2))
    learn = np.zeros((b, length), bool)
    lengths = np.zeros((b, length), np.int64)
    for row, window in enumerate(parts):
        n = len(window.ids_t1) - 1
        ids[row, :n], targets[row, :n] = window.ids_t1[:-1], window.ids_t1[1:]
        learn[row, :n], lengths[row] = window.learn_t, n
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        plain_positions(b, length),
        torch.from_numpy(learn),
        lengths_bt=torch.from_numpy(lengths),
    )
