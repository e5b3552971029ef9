"""What an objective makes of tokens, and what the loop needs from an objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from plinth.algos.load_balancing import load_balancing_loss
from plinth.algos.losses import token_nll_sum
from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder

if TYPE_CHECKING:
    from plinth.trainer.loop.group import Group


@dataclass
class Batch:
    """B sequences of T tokens, with what each position shall predict.

    `learn_bt` is None where every position counts; `segments_bt` is None where each sequence is
    one segment. Positions count from 0 within a segment. `lengths_bt` has, for each position, the
    tokens of its sequence, by which that turns (`ModelConfig.rope_offset`); None: T.
    """

    ids_bt: Tensor
    targets_bt: Tensor
    positions_bt: Tensor
    learn_bt: Tensor | None = None
    segments_bt: Tensor | None = None
    lengths_bt: Tensor | None = None

    @property
    def weight(self) -> int:
        """What the loss is averaged over: positions that count."""
        return self.tokens

    @property
    def tokens(self) -> int:
        """Positions that count in the loss."""
        if self.learn_bt is None:
            return self.targets_bt.numel()
        return int(self.learn_bt.sum())

    def to(self, device: str) -> Batch:
        """The same on another device."""
        optional = (self.learn_bt, self.segments_bt, self.lengths_bt)
        move = [t if t is None else t.to(device) for t in optional]
        return Batch(
            self.ids_bt.to(device),
            self.targets_bt.to(device),
            self.positions_bt.to(device),
            *move,
        )


class Learnable(Protocol):
    """A batch as the loop sees it."""

    @property
    def weight(self) -> int:
        """What the loss is averaged over: tokens, or pairs."""
        ...

    @property
    def tokens(self) -> int:
        """For rates."""
        ...

    def to(self, device: str) -> Any:
        """The same on another device."""
        ...


class Objective(Protocol):
    """Items are what is shuffled: windows of tokens, packed sequences, or pairs."""

    items: int

    def prepare(
        self, decoder: Decoder, group: Group, folder: Path, micro: int, used: Sequence[int] | None
    ) -> None:
        """Called once on each start with the model as it was before the first step.

        used: the items that the run will learn from; None where that is not known yet.
        """
        ...

    def batch(self, items: list[int]) -> Learnable:
        """The batch of these items [B]."""
        ...

    def loss_sum(self, decoder: Decoder, batch: Any) -> Tensor:
        """The loss, summed over what `weight` counts."""
        ...

    def evaluate(self, decoder: Decoder, group: Group, micro: int) -> Mapping[str, float]:
        """Held-out figures by name; empty where nothing was held out."""
        ...


def nll_sum(decoder: Decoder, batch: Batch, router_logits: list[Tensor] | None = None) -> Tensor:
    """Negative log-likelihood of the targets that count; logits are made for those rows only.

    router_logits: a list that takes those of all rows, of each layer with experts.
    """
    b, t = batch.ids_bt.shape
    backend = SdpaBackend(b, t, batch.segments_bt)
    ids_n = batch.ids_bt.reshape(-1)
    positions_n = _turning(decoder, batch).reshape(-1)
    targets_n, rows_m = batch.targets_bt.reshape(-1), None
    if batch.learn_bt is not None:
        rows_m = batch.learn_bt.reshape(-1).nonzero().squeeze(1)
        targets_n = targets_n.index_select(0, rows_m)
    wanted = rows_m if router_logits is None else None
    hidden_nd = decoder(ids_n, positions_n, backend, wanted, router_logits)
    if rows_m is not None and wanted is None:
        hidden_nd = hidden_nd.index_select(0, rows_m)
    return token_nll_sum(decoder.logits(hidden_nd, backend), targets_n)


def _turning(decoder: Decoder, batch: Batch) -> Tensor:
    """Positions as `Decoder.forward` takes them, [b, t]: a sequence turns by its own length,
    whatever it is packed or padded with."""
    config, positions_bt = decoder.config, batch.positions_bt
    if batch.lengths_bt is None:
        return positions_bt + config.rope_offset(positions_bt.shape[1])
    if not config.long_after:
        return positions_bt
    return positions_bt + config.context * (batch.lengths_bt > config.long_after)


def language_loss_sum(decoder: Decoder, batch: Batch) -> Tensor:
    """`nll_sum`; where the config says so with the loss that balances experts, once for each token,
    so that the batch's average has it once. Padding, segment 0, does not count in it."""
    experts = decoder.config.experts
    if experts is None or not experts.balanced:
        return nll_sum(decoder, batch)
    router_logits: list[Tensor] = []
    loss = nll_sum(decoder, batch, router_logits)
    if not router_logits:
        return loss
    counted_n = None if batch.segments_bt is None else batch.segments_bt.reshape(-1) > 0
    balance = load_balancing_loss(router_logits, experts.chosen, counted_n)
    return loss + batch.tokens * experts.balance * balance


def plain_positions(b: int, t: int) -> Tensor:
    """0 … T-1 in each of B sequences."""
    return torch.arange(t).expand(b, t)
