"""What one policy optimisation is: frozen, and checked at the start."""

from __future__ import annotations

import math
from dataclasses import dataclass

from plinth.shared.errors import InvalidArgument
from plinth.shared.objectives import KL_ESTIMATORS, OBJECTIVES, wrong_estimator

ALGORITHMS = ("ppo", "grpo", "rloo")
_NOT_NEGATIVE = (
    "value_weight",
    "entropy_weight",
    "kl_coefficient",
    "kl_target",
    "missing_eos_penalty",
    "clip_norm",
    "weight_decay",
    "stop_kl",
    "max_update_kl",
    "kl_explosion",
)


@dataclass(frozen=True)
class PolicyConfig:
    """Defaults are PPO's usual ones for language; `grpo` and `rloo` have no critic.

    The batch of an update is prompts × samples answers. Where the KL to the reference enters and by
    which estimator is explicit: "reward" subtracts it from each token's reward (Ouyang et al.
    2022), "loss" adds it to the loss (Shao et al. 2024).
    """

    algorithm: str = "ppo"
    updates: int = 100
    prompts: int = 16  # per update
    samples: int = 1  # per prompt
    max_new_tokens: int = 64
    temperature: float = 1.0
    learning_rate: float = OBJECTIVES["ppo"].learning_rate
    epochs: int = 1  # over each batch
    minibatches: int = 1  # optimiser steps per epoch
    micro_batch: int = 16  # answers per forward pass
    clip_low: float = 0.2
    clip_high: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    kl_coefficient: float = 0.05  # 0: no reference is kept
    kl_target: float = 0.0  # nats per answer; 0: the coefficient stays as it is
    kl_estimator: str = ""  # k1 in the reward; in the loss k2 (the default there) or k3
    kl_in: str = "reward"  # or "loss"
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    by_std: bool = True  # GRPO: divide by the group's standard deviation
    normalise: str = "tokens"  # what long answers weigh: "tokens", "answers" or "constant"
    missing_eos_penalty: float = 0.0  # subtracted from answers that were cut off
    bootstrap: bool = False  # an answer that was cut off would have gone on: value what follows
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    # Nats per token from the policy before an update. At the first the update's other steps are
    # dropped (a clip of 0.2 alone lets some 0.02 through); at the second, after it, the run ends.
    # 0: off.
    stop_kl: float = 0.1
    max_update_kl: float = 1.0
    kl_explosion: float = 0.0  # nats per answer to the reference, at which the run ends; 0: off
    max_gap: float = 1e-3  # of |log p(trainer) - log p(sampler)|, relative to max(1, |log p|)
    seed: int = 0
    rollouts: str = "local"  # by an engine in the trainer's process, or "shards"
    ahead: int = 0  # 1: the next batch is sampled while this one is trained on
    importance_cap: float = 2.0  # of the weights of tokens that older weights sampled

    def __post_init__(self) -> None:
        def need(right: bool, field: str, what: str) -> None:
            if not right:
                value = getattr(self, field)
                raise InvalidArgument(f"{field} is {value!r}, must be {what}", field=field)

        need(self.algorithm in ALGORITHMS, "algorithm", f"one of {', '.join(ALGORITHMS)}")
        for name in ("updates", "prompts", "samples", "max_new_tokens", "epochs", "minibatches"):
            need(getattr(self, name) >= 1, name, "at least 1")
        need(self.micro_batch >= 1, "micro_batch", "at least 1")
        need(
            0 < self.temperature <= 2, "temperature", "above 0 and at most 2: greedy has no policy"
        )
        need(self.learning_rate > 0, "learning_rate", "above 0")
        for name in ("gamma", "lam"):
            need(0 <= getattr(self, name) <= 1, name, "0 to 1")
        need(0 < self.clip_low < 1, "clip_low", "above 0 and below 1")
        for name in ("clip_high", "value_clip"):
            need(0 < getattr(self, name) < math.inf, name, "above 0")
        for name in _NOT_NEGATIVE:
            need(0 <= getattr(self, name) < math.inf, name, "0 or more")
        need(self.rollouts in ("local", "shards"), "rollouts", "'local' or 'shards'")
        need(self.ahead in (0, 1), "ahead", "0 or 1")
        need(not self.ahead or self.rollouts == "shards", "ahead", "0 unless rollouts is 'shards'")
        need(1 <= self.importance_cap < math.inf, "importance_cap", "at least 1")
        need(self.kl_in in ("reward", "loss"), "kl_in", "'reward' or 'loss'")
        if why := wrong_estimator(self.kl_in, self.estimator):
            raise InvalidArgument(
                f"kl_estimator: {why}", reason="KL_GRADIENT", field="kl_estimator"
            )
        need(self.normalise in ("tokens", "answers", "constant"), "normalise", "a known choice")
        need(self.answers % self.minibatches == 0, "minibatches", f"a divisor of {self.answers}")
        need(math.isfinite(self.max_gap) and self.max_gap > 0, "max_gap", "above 0")
        if self.algorithm != "ppo":
            need(self.samples >= 2, "samples", f"at least 2: {self.algorithm} compares a group")

    @property
    def estimator(self) -> str:
        """Of the KL where it enters."""
        return self.kl_estimator or KL_ESTIMATORS[self.kl_in][0]

    @property
    def answers(self) -> int:
        """Of one update."""
        return self.prompts * self.samples

    @property
    def has_critic(self) -> bool:
        return self.algorithm == "ppo"
