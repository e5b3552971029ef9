"""From rewards to what an update works towards: advantages, returns, and what stays fixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plinth.algos import policy as algo
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.model import Outputs, RolloutBatch


@dataclass(frozen=True)
class Targets:
    """What the optimiser works towards; fixed for all epochs."""

    old_bt: Tensor
    advantages_bt: Tensor
    reference_bt: Tensor | None
    old_values_bt: Tensor | None = None
    returns_bt: Tensor | None = None
    weights_bt: Tensor | None = None  # of tokens by older weights
    behaviour_bt: Tensor | None = None  # of the weights that sampled, where they are older


def critic_targets(
    before: Outputs,
    batch: RolloutBatch,
    rewards_b: Tensor,
    kl_bt: Tensor,
    ended_b: Tensor,
    reference_bt: Tensor | None,
    config: PolicyConfig,
    coefficient: float,
) -> Targets:
    """PPO's: GAE over the tokens of each answer, by the critic's values before the update."""
    assert before.values_bt is not None
    assert before.value_after_b is not None
    in_reward = coefficient if config.kl_in == "reward" else 0.0
    rewards_bt = algo.token_rewards(rewards_b, kl_bt, batch.valid_bt, in_reward)
    if config.whiten_rewards:  # detail 10: the mean stays, or the sign of a reward would change
        rewards_bt = algo.whiten(rewards_bt, batch.valid_bt, shift_mean=False)
    after_b = before.value_after_b * (~ended_b).float() if config.bootstrap else None
    advantages_bt, returns_bt = algo.gae(
        rewards_bt,
        before.values_bt,
        batch.valid_bt,
        gamma=config.gamma,
        lam=config.lam,
        bootstrap_b=after_b,
    )
    if config.whiten_advantages:  # over all valid tokens of the whole batch
        advantages_bt = algo.whiten(advantages_bt, batch.valid_bt)
    return Targets(before.logprobs_bt, advantages_bt, reference_bt, before.values_bt, returns_bt)


def group_targets(
    before: Outputs,
    batch: RolloutBatch,
    rewards_b: Tensor,
    kl_bt: Tensor,
    reference_bt: Tensor | None,
    config: PolicyConfig,
    coefficient: float,
) -> Targets:
    """GRPO's and RLOO's: one advantage per answer, against its group.

    A KL in the reward stands beside what GRPO has normalised, as it does in its loss (Shao et al.
    2024, eq. 3): divided by a group's deviation, it would be all there is where rewards are equal.
    """
    if config.algorithm == "grpo":
        advantages_b = algo.group_advantages(rewards_b, config.samples, by_std=config.by_std)
    else:
        advantages_b = algo.leave_one_out_advantages(rewards_b, config.samples)
    if config.kl_in == "reward":
        kl_b = torch.where(batch.valid_bt, kl_bt, 0.0).sum(1)
        cost_b = (
            algo.group_advantages(kl_b, config.samples, by_std=False)
            if config.algorithm == "grpo"
            else algo.leave_one_out_advantages(kl_b, config.samples)
        )
        advantages_b = advantages_b - coefficient * cost_b
    advantages_bt = torch.where(batch.valid_bt, advantages_b[:, None], 0.0)
    return Targets(before.logprobs_bt, advantages_bt, reference_bt)
