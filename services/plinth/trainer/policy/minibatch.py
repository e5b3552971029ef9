"""Optimiser steps on the parts of one batch: losses, gradients, and what is told of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plinth.algos import policy as algo
from plinth.shared.errors import FailedPrecondition
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.model import Actor, Outputs, RolloutBatch
from plinth.trainer.policy.targets import Targets

MEASURED = 8  # answers that tell how far an update went, at most


def look(actor: Actor, batch: RolloutBatch, config: PolicyConfig) -> Outputs:
    """What actor and critic say of these answers."""
    outputs: Outputs = actor(batch, config.temperature, with_entropy=config.entropy_weight > 0)
    return outputs


def pieces(rows_b: Tensor, size: int) -> list[Tensor]:
    """In order, `size` at a time."""
    return [rows_b[low : low + size] for low in range(0, len(rows_b), size)]


class Figures:
    """Weighted means of what is told along the way."""

    NAMES = ("entropy", "policy_loss", "value_loss", "clipped", "grad_norm")

    def __init__(self) -> None:
        self._sums = dict.fromkeys(self.NAMES, 0.0)
        self._weights = dict.fromkeys(self.NAMES, 0.0)

    def add(self, weight: float = 1.0, **values: float) -> None:
        for name, value in values.items():
            self._sums[name] += weight * value
            self._weights[name] += weight

    def means(self) -> dict[str, float]:
        return {
            n: self._sums[n] / self._weights[n] if self._weights[n] else 0.0 for n in self.NAMES
        }


@dataclass
class Step:
    """Optimiser steps on parts of one batch."""

    actor: Actor
    optimizer: torch.optim.Optimizer
    batch: RolloutBatch
    targets: Targets
    config: PolicyConfig
    coefficient: float
    figures: Figures = field(default_factory=Figures)

    def take(self, rows_b: Tensor, outputs: Outputs | None) -> bool:
        """One step on these rows, or False: the policy had moved far enough to stop instead.

        outputs: of these very rows, if they were computed with a graph.
        """
        config = self.config
        valid_bt = self.batch.valid_bt[rows_b]
        tokens, answers = float(valid_bt.sum()), float(len(rows_b))
        self.optimizer.zero_grad(set_to_none=True)
        kl_sum = 0.0
        for micro_b in pieces(rows_b, config.micro_batch):
            now = outputs or look(self.actor, self.batch.rows(micro_b), config)
            loss, kl = self._loss(now, micro_b, tokens, answers)
            torch.autograd.backward(loss)
            kl_sum += kl
        limit = config.clip_norm or math.inf
        parameters = list(self.actor.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=False)
        if not math.isfinite(float(norm)):
            raise FailedPrecondition(
                "the loss is not a number; the last good policy is kept. Lower the learning rate "
                f"(now {config.learning_rate:g})",
                reason="LOSS_NOT_FINITE",
            )
        if config.stop_kl and kl_sum / tokens > config.stop_kl:
            return False
        self.figures.add(grad_norm=float(norm))
        self.optimizer.step()
        return True

    def moved(self) -> float:
        """Nats per token from the policy before the first step to the one now (k3), by a few
        answers from all over the batch: one more look at all would cost a fifth of an update."""
        rows_b = torch.arange(0, answers := len(self.batch.last_b), -(-answers // MEASURED))
        total = tokens = 0.0
        for micro_b in pieces(rows_b, self.config.micro_batch):
            batch = self.batch.rows(micro_b)
            with torch.no_grad():
                now = look(self.actor, batch, self.config)
                # Of the inverse ratio: what the estimator calls the policy has sampled here.
                kl_bt = algo.kl_estimate(self.targets.old_bt[micro_b], now.logprobs_bt, "k3")
            total += float(kl_bt[batch.valid_bt].sum())
            tokens += float(batch.valid_bt.sum())
        return total / tokens

    def _loss(
        self, now: Outputs, rows_b: Tensor, tokens: float, answers: float
    ) -> tuple[Tensor, float]:
        """(these rows' share of the minibatch's mean loss, their KL(old ‖ now) in nats)."""
        config, targets, figures = self.config, self.targets, self.figures
        valid_bt = self.batch.valid_bt[rows_b]
        here = float(valid_bt.sum())

        def mean(loss_bt: Tensor) -> Tensor:
            return algo.normalised(
                loss_bt,
                valid_bt,
                config.normalise,
                tokens=tokens,
                answers=answers,
                longest=config.max_new_tokens,
            )

        terms = algo.clipped_policy_loss(
            now.logprobs_bt,
            targets.old_bt[rows_b],
            targets.advantages_bt[rows_b],
            valid_bt,
            low=config.clip_low,
            high=config.clip_high,
            weights_bt=None if targets.weights_bt is None else targets.weights_bt[rows_b],
        )
        loss = mean(terms.loss_bt)
        figures.add(
            here,
            policy_loss=float(terms.loss_bt.detach().sum()) / here,
            clipped=float(terms.clipped) / here,
        )
        if targets.returns_bt is not None:
            assert now.values_bt is not None
            assert targets.old_values_bt is not None
            value_bt = algo.clipped_value_loss(
                now.values_bt,
                targets.old_values_bt[rows_b],
                targets.returns_bt[rows_b],
                valid_bt,
                config.value_clip,
            )
            loss = loss + config.value_weight * value_bt.sum() / tokens
            figures.add(here, value_loss=float(value_bt.detach().sum()) / here)
        if targets.reference_bt is not None and config.kl_in == "loss":
            kl_bt = self._penalties(now, rows_b, targets.reference_bt[rows_b])
            loss = loss + self.coefficient * mean(torch.where(valid_bt, kl_bt, 0.0))
        if config.entropy_weight:
            loss = loss - config.entropy_weight * mean(now.entropy_bt)
            figures.add(here, entropy=float(now.entropy_bt.detach().sum()) / here)
        return loss, float(terms.kl_to_old)

    def _penalties(self, now: Outputs, rows_b: Tensor, reference_bt: Tensor) -> Tensor:
        """The KL's estimate at each token, weighted: its gradient is an expectation over the policy
        of now, and the samples are of the one before this batch's first step, or older."""
        targets, config = self.targets, self.config
        kl_bt = algo.kl_estimate(now.logprobs_bt, reference_bt, config.estimator)
        sampled_bt = targets.old_bt if targets.behaviour_bt is None else targets.behaviour_bt
        weights_bt = algo.truncated_weights(
            now.logprobs_bt.detach(), sampled_bt[rows_b], config.importance_cap
        )
        return weights_bt * kl_bt
