"""One update of a policy from one batch of its answers, as numbered steps.

The details that decide whether PPO works on language are those of Huang et al. 2024 ("The N+
implementation details of RLHF with PPO"), named where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from plinth.algos import policy as algo
from plinth.shared.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.model import Actor, Outputs, RolloutBatch
from plinth.trainer.policy.rollouts import Rollout
from plinth.trainer.policy.targets import Targets, critic_targets, group_targets

GAP_TOLERANCE = 1e-5  # what trainer and sampler may differ by for 99.5 % of the tokens


@dataclass(frozen=True)
class Learned:
    """Figures of one update; nats, and shares of 1."""

    score: float  # mean over the answers, before any penalty
    score_std: float
    kl: float  # to the reference, per answer
    entropy: float  # 0 unless it has a weight in the loss: it is not computed else
    policy_loss: float
    value_loss: float
    clipped: float
    kl_to_sampler: float  # per token, after the last step
    grad_norm: float
    gap: float  # the largest |Δ log p| between trainer and sampler, relative to max(1, |log p|)
    gap_within: float  # the share of tokens within GAP_TOLERANCE
    tokens: int
    length: float
    ended: float
    importance: float = 1.0  # the mean truncated weight of a token; 1 where nothing is stale


def learn(
    actor: Actor,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    scores: Sequence[float],
    reference_bt: Tensor | None,
    config: PolicyConfig,
    coefficient: float,
    generator: torch.Generator,
    *,
    stale: bool = False,
) -> Learned:
    """Changes `actor`. `scores` has one reward per answer; `coefficient` is the KL's now. `stale`:
    the answers are by older weights, so the log-probabilities may differ, and importance weights
    (of this policy to that one, truncated) say how much each token counts.

    Raises InvalidArgument (an answer without tokens, a score that is no number), DataLoss (trainer
    and sampler disagree: the weights did not arrive as they were sent), Aborted (the KL exploded)
    and FailedPrecondition (a loss that is no number). The actor is unchanged by all but the last.
    """
    _check(rollouts, scores)
    device = next(actor.parameters()).device
    batch = RolloutBatch.of(rollouts).to(str(device))
    # 1. The policy as it is, on its own answers. With one optimiser step over one forward pass the
    #    graph is kept, and step 5 need not compute it again.
    once = config.epochs * config.minibatches == 1 and len(rollouts) <= config.micro_batch
    outputs = _look(actor, batch, config) if once else None
    before = _detached(outputs) if outputs else _without_grad(actor, batch, config)
    # 2. Trainer and sampler must agree on what was sampled, unless it is by older weights.
    limit = math.inf if stale else config.max_gap
    gap, within = _check_gap(before.logprobs_bt, batch, limit)
    # 3. KL to the reference, and each answer's reward.
    valid_bt = batch.valid_bt
    kl_bt = torch.zeros_like(before.logprobs_bt)
    if reference_bt is not None:
        kl_bt = algo.kl_estimate(before.logprobs_bt, reference_bt, config.kl_estimator)
    kl = float(torch.where(valid_bt, kl_bt, 0.0).sum(1).mean())
    if config.kl_explosion and kl > config.kl_explosion:
        raise Aborted(
            f"KL to the reference is {kl:.1f} nats per answer, {config.kl_explosion:g} is the "
            "bound; raise kl_coefficient or lower the learning rate. The last checkpoint is the "
            "last good policy",
            reason="KL_EXPLOSION",
        )
    scores_b = torch.tensor(scores, dtype=torch.float32, device=device)
    ended_b = torch.tensor([rollout.ended for rollout in rollouts], device=device)
    rewards_b = scores_b - config.missing_eos_penalty * (~ended_b).float()
    # 4. Advantages: by a critic over the tokens, or by the group.
    targets = (
        critic_targets(before, batch, rewards_b, kl_bt, ended_b, reference_bt, config, coefficient)
        if config.has_critic
        else group_targets(before, batch, rewards_b, kl_bt, reference_bt, config, coefficient)
    )
    if stale:
        weights_bt = algo.truncated_weights(
            before.logprobs_bt, batch.sampler_bt, config.importance_cap
        )
        targets = replace(targets, weights_bt=weights_bt)
    # 5. Epochs over shuffled minibatches, until the policy has moved far enough.
    step = _Step(actor, optimizer, batch, targets, config, coefficient)
    for rows_b in _minibatches(len(rollouts), config, generator):
        if step.take(rows_b, outputs):
            break
    lengths_b = valid_bt.sum(1).float()
    return Learned(
        score=float(scores_b.mean()),
        score_std=float(scores_b.std(unbiased=False)),
        kl=kl,
        gap=gap,
        gap_within=within,
        tokens=int(valid_bt.sum()),
        length=float(lengths_b.mean()),
        ended=float(ended_b.float().mean()),
        importance=_mean_weight(targets, valid_bt),
        **step.figures.means(),
    )


def _check(rollouts: Sequence[Rollout], scores: Sequence[float]) -> None:
    for rollout, score in zip(rollouts, scores, strict=True):
        if not rollout.response:
            raise InvalidArgument(f"rollout {rollout.id} has no response to learn from")
        if not math.isfinite(score):
            raise InvalidArgument(
                f"the reward of rollout {rollout.id} is {score}; a reward must be a finite number",
                reason="REWARD_NOT_FINITE",
            )


def _look(actor: Actor, batch: RolloutBatch, config: PolicyConfig) -> Outputs:
    outputs: Outputs = actor(batch, config.temperature, with_entropy=config.entropy_weight > 0)
    return outputs


def _detached(outputs: Outputs) -> Outputs:
    values, after = outputs.values_bt, outputs.value_after_b
    return Outputs(
        outputs.logprobs_bt.detach(),
        outputs.entropy_bt.detach(),
        None if values is None else values.detach(),
        None if after is None else after.detach(),
    )


def _without_grad(actor: Actor, batch: RolloutBatch, config: PolicyConfig) -> Outputs:
    with torch.no_grad():
        parts = [
            _look(actor, batch.rows(rows_b), config)
            for rows_b in _pieces(torch.arange(len(batch.last_b)), config.micro_batch)
        ]
    logprobs_bt = torch.cat([part.logprobs_bt for part in parts])
    entropy_bt = torch.cat([part.entropy_bt for part in parts])
    values = [part.values_bt for part in parts if part.values_bt is not None]
    after = [part.value_after_b for part in parts if part.value_after_b is not None]
    if not values:
        return Outputs(logprobs_bt, entropy_bt)
    return Outputs(logprobs_bt, entropy_bt, torch.cat(values), torch.cat(after))


def _pieces(rows_b: Tensor, size: int) -> list[Tensor]:
    return [rows_b[low : low + size] for low in range(0, len(rows_b), size)]


def _check_gap(old_bt: Tensor, batch: RolloutBatch, limit: float) -> tuple[float, float]:
    sampler = batch.sampler_bt[batch.valid_bt]
    gaps = (old_bt[batch.valid_bt] - sampler).abs() / sampler.abs().clamp(min=1.0)
    worst = float(gaps.max())
    if not worst <= limit:  # NaN too
        raise DataLoss(
            f"trainer and sampler differ by {worst:.2g} in a token's log-probability, {limit:g} is "
            "the bound: the sampler does not hold the trainer's weights",
            reason="LOGPROB_GAP",
        )
    return worst, float((gaps <= GAP_TOLERANCE).float().mean())


def _mean_weight(targets: Targets, valid_bt: Tensor) -> float:
    weights_bt = targets.weights_bt
    return 1.0 if weights_bt is None else float(weights_bt[valid_bt].mean())


def _minibatches(
    answers: int, config: PolicyConfig, generator: torch.Generator
) -> Iterator[Tensor]:
    size = answers // config.minibatches
    for _ in range(config.epochs):
        whole = config.minibatches == 1  # order would only change the order of summation
        order = torch.arange(answers) if whole else torch.randperm(answers, generator=generator)
        yield from _pieces(order, size)


class _Figures:
    """Weighted means of what is told along the way."""

    NAMES = ("entropy", "policy_loss", "value_loss", "clipped", "kl_to_sampler", "grad_norm")

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
class _Step:
    """Optimiser steps on parts of one batch."""

    actor: Actor
    optimizer: torch.optim.Optimizer
    batch: RolloutBatch
    targets: Targets
    config: PolicyConfig
    coefficient: float
    figures: _Figures = field(default_factory=_Figures)

    def take(self, rows_b: Tensor, outputs: Outputs | None) -> bool:
        """One step on these rows; whether the policy had moved far enough to stop instead.

        outputs: of these very rows, if they were computed with a graph.
        """
        config = self.config
        valid_bt = self.batch.valid_bt[rows_b]
        tokens, answers = float(valid_bt.sum()), float(len(rows_b))
        self.optimizer.zero_grad(set_to_none=True)
        kl_sum = 0.0
        for micro_b in _pieces(rows_b, config.micro_batch):
            now = outputs or _look(self.actor, self.batch.rows(micro_b), config)
            loss, kl = self._loss(now, micro_b, tokens, answers)
            torch.autograd.backward(loss)
            kl_sum += kl
        limit = config.clip_norm or math.inf
        parameters = list(self.actor.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=False)
        if not math.isfinite(float(norm)):
            raise FailedPrecondition(
                "the loss is not a number; the last good policy is kept. Lower the learning rate, "
                "or raise kl_coefficient",
                reason="LOSS_NOT_FINITE",
            )
        self.figures.add(grad_norm=float(norm), kl_to_sampler=kl_sum / tokens)
        if config.stop_kl and kl_sum / tokens > config.stop_kl:
            return True
        self.optimizer.step()
        return False

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
            reference_bt = targets.reference_bt[rows_b]
            kl_bt = algo.kl_estimate(now.logprobs_bt, reference_bt, config.kl_estimator)
            loss = loss + self.coefficient * mean(torch.where(valid_bt, kl_bt, 0.0))
        if config.entropy_weight:
            loss = loss - config.entropy_weight * mean(now.entropy_bt)
            figures.add(here, entropy=float(now.entropy_bt.detach().sum()) / here)
        return loss, float(terms.kl_to_old)
