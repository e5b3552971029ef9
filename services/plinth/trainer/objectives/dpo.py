"""Direct preference optimisation (Rafailov et al. 2023), with IPO, cDPO and a likelihood term.

1. The reference is the model that the run starts from; where adapters are trained, their base, by
   switching them off. Its log-probabilities of all answers are computed once, before the first
   step, and kept in the job's folder.
2. A step raises the log-ratio of the preferred answers over that of the others.
3. The likelihood term (Pang et al. 2024) keeps the preferred answers likely in themselves: without
   it both log-probabilities may fall, as long as the other falls faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plinth.algos.preferences import PairLogprobs, dpo_loss, ipo_loss
from plinth.models.adapters.lora import switched_off
from plinth.models.decoder import Decoder
from plinth.trainer.data.shards import Split
from plinth.trainer.objectives.pairs import (
    PairBatch,
    PairOptions,
    Pairs,
    answer_logprobs,
    pieces,
)
from plinth.trainer.objectives.preference_figures import PairSums, check_displacement

if TYPE_CHECKING:
    from plinth.trainer.loop.group import Group

REFERENCE = "reference.safetensors"


class DirectPreference:
    """An objective over pairs of the training split."""

    def __init__(
        self, train: Split, validation: Split, length: int, pad_id: int, options: PairOptions
    ) -> None:
        self._options = options
        self._pairs = {
            "train": Pairs(train, length + 1, pad_id),  # the last token is never read
            "validation": Pairs(validation, length + 1, pad_id),
        }
        self._reference: dict[str, Tensor] = {}  # split → [pairs of the split, 2] log-probs
        self._sizes = {"train": train.documents // 2, "validation": validation.documents // 2}
        self.items = len(self._pairs["train"])

    def prepare(
        self, decoder: Decoder, group: Group, folder: Path, micro: int, used: Sequence[int] | None
    ) -> None:
        """The reference's log-probabilities, by the model as it is now, before any step."""
        path = folder / REFERENCE
        (there,) = group.from_first([path.is_file()])
        if there:
            self._reference = load_file(path)
            return
        for split, pairs in self._pairs.items():
            values_pc = torch.zeros(self._sizes[split], 2, dtype=torch.float64)
            precision = _precision(split, group)
            wanted: Sequence[int] = pairs.judged()
            if split == "train":
                wanted = range(len(pairs)) if used is None else used
            with group.patiently(), torch.no_grad(), switched_off(decoder), precision:
                for turn, items in enumerate(pieces(wanted, micro)):
                    if turn % group.world == group.rank:
                        batch = pairs.batch(items).to(group.device)
                        both = self._per_answer(decoder, batch).double().cpu().view(2, -1)
                        values_pc[batch.numbers] = both.t()
            flat = group.sum(values_pc.reshape(-1).tolist())
            summed_pc = torch.tensor(flat, dtype=torch.float64).view(-1, 2)
            # What the run never looks at stays NaN: a mistake would show.
            known = [pairs.numbers[item] for item in wanted]
            self._reference[split] = torch.full_like(summed_pc, torch.nan)
            self._reference[split][known] = summed_pc[known]
        if group.rank == 0:
            partial = path.with_suffix(".partial")
            save_file(self._reference, str(partial))
            partial.replace(path)

    def batch(self, items: list[int]) -> PairBatch:
        return self._pairs["train"].batch(items)

    def loss_sum(self, decoder: Decoder, batch: PairBatch) -> Tensor:
        sums_b, tokens_b = answer_logprobs(decoder, batch)
        loss_b = self._loss(self._scaled(sums_b, tokens_b), self._reference_of("train", batch))
        loss = loss_b.sum()
        if self._options.likelihood_weight:
            n = batch.weight
            likelihood = -(sums_b[:n] / tokens_b[:n]).sum()
            loss = loss + self._options.likelihood_weight * likelihood
        return loss

    def evaluate(self, decoder: Decoder, group: Group, micro: int) -> Mapping[str, float]:
        """Held-out figures (`preference_figures.py`). FailedPrecondition where what is preferred
        became too unlikely in itself."""
        pairs, sums = self._pairs["validation"], PairSums()
        with group.patiently(), torch.no_grad():
            for turn, items in enumerate(pieces(pairs.judged(), micro)):
                if turn % group.world == group.rank:
                    self._look(decoder, pairs.batch(items).to(group.device), sums)
        sums = PairSums.from_list(group.sum(sums.to_list()))
        if not sums.pairs:
            return {}
        check_displacement(sums, self._options)
        return sums.figures()

    def _look(self, decoder: Decoder, batch: PairBatch, sums: PairSums) -> None:
        """Adds a batch of held-out pairs to `sums`."""
        sums_b, tokens_b = answer_logprobs(decoder, batch)
        policy = self._scaled(sums_b, tokens_b)
        reference = self._reference_of("validation", batch)
        # IPO's log-probabilities are means over an answer's tokens.
        tokens_sb = tokens_b.clamp(min=1).view(2, -1)
        scale_sb = tokens_sb if self._options.loss == "ipo" else torch.ones_like(tokens_sb)
        before_sb = torch.stack((reference.chosen_b, reference.rejected_b)) * scale_sb
        loss_b = self._loss(policy, reference)
        beta_sb = self._options.beta / scale_sb
        sums.add(before_sb, sums_b.view(2, -1), tokens_sb, loss_b, beta_sb)

    def _loss(self, policy: PairLogprobs, reference: PairLogprobs) -> Tensor:
        options = self._options
        if options.loss == "ipo":
            return ipo_loss(policy, reference, options.beta)
        return dpo_loss(policy, reference, options.beta, label_smoothing=options.label_smoothing)

    def _per_answer(self, decoder: Decoder, batch: PairBatch) -> Tensor:
        sums_b, tokens_b = answer_logprobs(decoder, batch)
        both = self._scaled(sums_b, tokens_b)
        return torch.cat((both.chosen_b, both.rejected_b))

    def _scaled(self, sums_b: Tensor, tokens_b: Tensor) -> PairLogprobs:
        """Sums, or means for IPO."""
        return _split(sums_b / tokens_b.clamp(min=1) if self._options.loss == "ipo" else sums_b)

    def _reference_of(self, split: str, batch: PairBatch) -> PairLogprobs:
        values = self._reference[split][batch.numbers].to(batch.ids_bt.device, torch.float32)
        return PairLogprobs(values[:, 0], values[:, 1])


def _precision(split: str, group: Group) -> AbstractContextManager[object]:
    """A reference is compared with a policy of the same rounding: training as the run computes,
    the evaluation in float32."""
    if split == "train":
        return nullcontext()
    return torch.autocast(group.device.split(":", maxsplit=1)[0], enabled=False)


def _split(values_b: Tensor) -> PairLogprobs:
    return PairLogprobs(*values_b.chunk(2))
