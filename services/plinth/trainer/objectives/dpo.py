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

from plinth.algos.intervals import wilson
from plinth.algos.preferences import PairLogprobs, dpo_loss, ipo_loss, log_ratio_lead
from plinth.models.decoder import Decoder
from plinth.models.lora import switched_off
from plinth.trainer.data.shards import Split
from plinth.trainer.objectives.pairs import (
    PairBatch,
    PairOptions,
    Pairs,
    answer_logprobs,
    pieces,
)

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
        """Held-out loss, and how often the log-ratio prefers the right answer."""
        pairs = self._pairs["validation"]
        loss = wins = lead = fallen = 0.0
        with group.patiently(), torch.no_grad():
            for turn, items in enumerate(pieces(pairs.judged(), micro)):
                if turn % group.world != group.rank:
                    continue
                batch = pairs.batch(items).to(group.device)
                policy = _split(self._per_answer(decoder, batch))
                reference = self._reference_of("validation", batch)
                lead_b = log_ratio_lead(policy, reference)
                loss += float(self._loss(policy, reference).sum())
                wins += float((lead_b > 0).sum() + 0.5 * (lead_b == 0).sum())
                lead += float(lead_b.sum())
                fallen += float((policy.chosen_b < reference.chosen_b).sum())
        loss, wins, lead, fallen = group.sum([loss, wins, lead, fallen])
        count = len(pairs.judged())
        if not count:
            return {}
        low, high = wilson(wins, count)
        return {
            "validation_pairs": float(count),
            "validation_loss": loss / count,
            "validation_accuracy": wins / count,
            "validation_accuracy_low": low,
            "validation_accuracy_high": high,
            "validation_lead": lead / count,
            "validation_chosen_fallen": fallen / count,
        }

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
