"""One update of a policy from one batch of its answers, as numbered steps.

The details that decide whether PPO works on language are those of Huang et al. 2024 ("The N+
implementation details of RLHF with PPO"), named where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from plinth.algos import policy as algo
from plinth.shared.errors import DataLoss, FailedPrecondition, InvalidArgument
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.minibatch import Step, look, pieces
from plinth.trainer.policy.model import Actor, Outputs, RolloutBatch
from plinth.trainer.policy.rollouts import Rollout
from plinth.trainer.policy.targets import Targets, critic_targets, group_targets

GAP_TOLERANCE = 1e-5  # what trainer and sampler may differ by for 99.5 % of the tokens


@dataclass(frozen=True)
class Learned:
    """Figures of one update; nats, and shares of 1."""

    score: float  # mean over the answers, before any penalty
    score_std: float
    lowest: float  # reward of an answer, after penalties
    highest: float
    kl: float  # to the reference, per answer
    entropy: float  # 0 unless it has a weight in the loss: it is not computed else
    policy_loss: float
    value_loss: float
    clipped: float
    grad_norm: float
    update_kl: float  # per token, from the policy before the update to the one after it
    dropped_steps: int  # by `stop_kl`
    groups: int  # whose rewards are compared: a prompt's answers; with a critic, the whole batch
    zero_variance_groups: int  # whose rewards are all equal: nothing tells their answers apart
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
    and sampler disagree: the weights did not arrive as they were sent) and FailedPrecondition: the
    KL to the reference, or of this very update, is beyond its bound; the loss is no number. But
    for those of the update itself, the actor is unchanged then.
    """
    _check(rollouts, scores)
    batch = RolloutBatch.of(rollouts, max_new_tokens=config.max_new_tokens)
    batch = batch.to(str(next(actor.parameters()).device))
    # 1. The policy as it is, on its own answers. With one optimiser step over one forward pass the
    #    graph is kept, and step 5 need not compute it again.
    once = config.epochs * config.minibatches == 1 and len(rollouts) <= config.micro_batch
    outputs = look(actor, batch, config) if once else None
    before = _detached(outputs) if outputs else _without_grad(actor, batch, config)
    # 2. Trainer and sampler must agree on what was sampled, unless it is by older weights.
    limit = math.inf if stale else config.max_gap
    gap, within = _check_gap(before.logprobs_bt, batch, limit)
    # 3. KL to the reference, and each answer's reward.
    valid_bt = batch.valid_bt
    weights_bt = None
    if stale:
        weights_bt = algo.truncated_weights(
            before.logprobs_bt, batch.sampler_bt, config.importance_cap
        )
    kl_bt = torch.zeros_like(before.logprobs_bt)
    if reference_bt is not None:  # k1: unbiased, whatever the estimator in the loss
        kl_bt = algo.kl_estimate(before.logprobs_bt, reference_bt)
    kl = _check_kl(kl_bt if weights_bt is None else weights_bt * kl_bt, valid_bt, config)
    device = batch.ids_bt.device
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
        targets = replace(targets, weights_bt=weights_bt, behaviour_bt=batch.sampler_bt)
    # 5. Epochs over shuffled minibatches, until the policy has moved far enough.
    step = Step(actor, optimizer, batch, targets, config, coefficient)
    steps = list(_minibatches(len(rollouts), config, generator))
    taken = sum(takewhile(bool, (step.take(rows_b, outputs) for rows_b in steps)))
    # 6. How far that was; on its way from there a policy seldom comes back.
    update_kl = _check_moved(step.moved(), config)
    equal_g = _equal(rewards_b, config)
    return Learned(
        score=float(scores_b.mean()),
        score_std=float(scores_b.std(unbiased=False)),
        lowest=float(rewards_b.min()),
        highest=float(rewards_b.max()),
        kl=kl,
        gap=gap,
        gap_within=within,
        tokens=int(valid_bt.sum()),
        length=float(valid_bt.sum(1).float().mean()),
        ended=float(ended_b.float().mean()),
        update_kl=update_kl,
        dropped_steps=len(steps) - taken,
        groups=len(equal_g),
        zero_variance_groups=int(equal_g.sum()),
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
            look(actor, batch.rows(rows_b), config)
            for rows_b in pieces(torch.arange(len(batch.last_b)), config.micro_batch)
        ]
    logprobs_bt = torch.cat([part.logprobs_bt for part in parts])
    entropy_bt = torch.cat([part.entropy_bt for part in parts])
    values = [part.values_bt for part in parts if part.values_bt is not None]
    after = [part.value_after_b for part in parts if part.value_after_b is not None]
    if not values:
        return Outputs(logprobs_bt, entropy_bt)
    return Outputs(logprobs_bt, entropy_bt, torch.cat(values), torch.cat(after))


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


def _check_kl(kl_bt: Tensor, valid_bt: Tensor, config: PolicyConfig) -> float:
    """Nats per answer to the reference."""
    kl = float(torch.where(valid_bt, kl_bt, 0.0).sum(1).mean())
    if config.kl_explosion and not kl <= config.kl_explosion:  # NaN too
        raise FailedPrecondition(
            f"KL to the reference is {kl:.1f} nats per answer, {config.kl_explosion:g} is the "
            "bound (kl_explosion): raise kl_coefficient (now "
            f"{config.kl_coefficient:g}) or lower the learning rate (now {config.learning_rate:g})",
            reason="KL_EXPLOSION",
        )
    return kl


def _check_moved(kl: float, config: PolicyConfig) -> float:
    if config.max_update_kl and not kl <= config.max_update_kl:  # NaN too
        raise FailedPrecondition(
            f"one update has moved the policy by {kl:.2g} nats per token, "
            f"{config.max_update_kl:g} is the bound (max_update_kl): lower the learning rate (now "
            f"{config.learning_rate:g}); some 0.02 is usual",
            reason="KL_EXPLOSION",
        )
    return kl


def _equal(rewards_b: Tensor, config: PolicyConfig) -> Tensor:
    """Of each group of rewards that are compared with one another, whether all are equal."""
    rewards_gb = rewards_b.view(-1, len(rewards_b) if config.has_critic else config.samples)
    return (rewards_gb == rewards_gb[:, :1]).all(1)


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
        yield from pieces(order, size)
