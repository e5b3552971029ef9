"""A reward model from preferences: Bradley-Terry on the scores of two answers (Ouyang et al. 2022).

The score is read at each answer's last token. The report says how often the better answer wins on
held-out pairs, and whether the model's confidence can be believed: expected calibration error
(Guo et al. 2017) of σ(lead) in ten bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plinth.algos.intervals import wilson
from plinth.algos.preferences import bradley_terry_loss
from plinth.kernels.training import SdpaBackend
from plinth.models.decoder import Decoder
from plinth.models.reward import RewardModel
from plinth.trainer.data.shards import Split
from plinth.trainer.objectives.pairs import PairBatch, PairOptions, Pairs, pieces

if TYPE_CHECKING:
    from plinth.trainer.loop.group import Group

BINS = 10


class RewardModelling:
    """An objective over pairs of the training split, for a `RewardModel`."""

    def __init__(
        self, train: Split, validation: Split, length: int, pad_id: int, options: PairOptions
    ) -> None:
        self._options = options
        self._train = Pairs(train, length, pad_id)
        self._validation = Pairs(validation, length, pad_id)
        self.items = len(self._train)

    def prepare(
        self, decoder: Decoder, group: Group, folder: Path, micro: int, used: Sequence[int] | None
    ) -> None:
        """Nothing to do."""

    def batch(self, items: list[int]) -> PairBatch:
        return self._train.batch(items)

    def loss_sum(self, decoder: Decoder, batch: PairBatch) -> Tensor:
        chosen_b, rejected_b = pair_scores(decoder, batch)
        options = self._options
        return bradley_terry_loss(
            chosen_b,
            rejected_b,
            margin_b=torch.full_like(chosen_b, options.margin) if options.margin else None,
            label_smoothing=options.label_smoothing,
            centring=options.centring,
        ).sum()

    def evaluate(self, decoder: Decoder, group: Group, micro: int) -> Mapping[str, float]:
        """Held-out accuracy with its interval, loss and calibration."""
        pairs, judged = self._validation, self._validation.judged()
        count = len(judged)
        loss = 0.0
        leads = torch.zeros(count, dtype=torch.float64)
        with group.patiently(), torch.no_grad():
            for turn, items in enumerate(pieces(judged, micro)):
                if turn % group.world == group.rank:
                    chosen_b, rejected_b = pair_scores(decoder, pairs.batch(items).to(group.device))
                    loss += float(bradley_terry_loss(chosen_b, rejected_b).sum())
                    leads[items] = (chosen_b - rejected_b).double().cpu()
        if not count:
            return {}
        loss, *lead_list = group.sum([loss, *leads.tolist()])
        leads = torch.tensor(lead_list)
        wins = float((leads > 0).sum() + 0.5 * (leads == 0).sum())
        low, high = wilson(wins, count)
        return {
            "validation_pairs": float(count),
            "validation_loss": loss / count,
            "validation_accuracy": wins / count,
            "validation_accuracy_low": low,
            "validation_accuracy_high": high,
            "validation_lead": float(leads.mean()),
            "validation_calibration_error": calibration_error(leads),
        }


def pair_scores(model: Decoder, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """(scores of the preferred answers, of the others), each [B]."""
    assert isinstance(model, RewardModel)
    parts = batch.alike()
    scores_b = torch.cat([_scores(model, batch, rows_b) for rows_b in parts])
    chosen_b, rejected_b = scores_b[torch.cat(parts).argsort()].chunk(2)
    return chosen_b, rejected_b


def _scores(model: RewardModel, batch: PairBatch, rows_b: Tensor) -> Tensor:
    """Of some rows, as wide as the longest of them."""
    last_b = batch.last_b[rows_b]
    ids_bt = batch.ids_bt[rows_b, : int(last_b.max()) + 1]
    b, t = ids_bt.shape
    backend = SdpaBackend(b, t)
    positions_n = model.positions(last_b + 1, t)
    ends_b = torch.arange(b, device=ids_bt.device) * t + last_b
    hidden_bd = model(ids_bt.reshape(-1), positions_n, backend, ends_b)
    return model.scores(hidden_bd, backend).float()


def calibration_error(leads: Tensor) -> float:
    """Mean gap between confidence max(σ, 1 - σ) and accuracy, weighted by the pairs in each bin."""
    confidence = leads.abs().sigmoid()
    right = (leads > 0).double()
    index = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    error = 0.0
    for number in range(BINS):
        here = index == number
        if here.any():
            gap = (confidence[here].mean() - right[here].mean()).abs()
            error += float(gap) * int(here.sum())
    return error / len(leads)
