"""The whole path of a policy optimisation, once for PPO, GRPO and RLOO.

Each update is a function of the run's seed, its number and the weights before it: prompts are
dealt by position, noise is counter-based, answers are ordered by id. So a run that is stopped
between updates and goes on from `PolicyState` ends with the same weights.

One step ahead (`config.ahead`) the answers of the next update are sampled while this one is trained
on, by weights that are one update old; truncated importance weights make up for that. Such a run
samples its first batch anew when it goes on, and so may end elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from plinth.algos.policy import AdaptiveKl
from plinth.engine.request import Sampling
from plinth.models.adapters.lora import switched_off
from plinth.models.decoder import Decoder
from plinth.trainer.data.sampler import BatchSampler
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.model import Actor, logprobs
from plinth.trainer.policy.rollouts import Order, Rollout, RolloutSampler, check_fresh, in_order
from plinth.trainer.policy.update import Learned, learn

# Rewards of answers: one finite number each.
Reward = Callable[[Sequence[Rollout]], Sequence[float]]


@dataclass
class PolicyState:
    """Where a run stands; with the actor's and the optimiser's tensors it is all of it."""

    update: int = 0
    coefficient: float = 0.0  # of the KL; a controller may move it


@dataclass(frozen=True)
class Update:
    """One update's figures and where its time went, in seconds."""

    number: int
    learned: Learned
    coefficient: float
    weights_digest: str
    seconds: dict[str, float] = field(default_factory=dict)


def optimise(
    actor: Actor,
    reference: Decoder | None,
    sampler: RolloutSampler,
    reward: Reward,
    prompts: Sequence[tuple[int, ...]],
    config: PolicyConfig,
    optimizer: torch.optim.Optimizer,
    progress: PolicyState,
    *,
    stop_ids: frozenset[int] = frozenset(),
    heard: Callable[[Sequence[Rollout]], None] = lambda _: None,
) -> Iterator[Update]:
    """Yields after each update; the caller checkpoints then, and may stop.

    `heard` is told of each prompt's answers as soon as they are there. Raises what `learn` raises.
    """
    dealer = BatchSampler(len(prompts), config.seed)
    controller = AdaptiveKl(progress.coefficient or config.kl_coefficient, config.kl_target)
    sampling = Sampling(config.temperature, max_tokens=config.max_new_tokens, stop_ids=stop_ids)
    orders = partial(_orders, dealer, prompts, config)
    digests = {progress.update: sampler.renew(progress.update)}
    asked = False
    while progress.update < config.updates:
        clock = _Clock()
        number = progress.update
        # 1. Answers by the policy as it is; or, one step ahead, as it was.
        if not asked:
            sampler.start(orders(number), sampling)
        rollouts = []
        for group in sampler.arrivals():
            heard(group)
            rollouts += group
        rollouts = in_order(rollouts)
        check_fresh(rollouts, number, digests.values(), config.ahead)
        if asked := bool(config.ahead) and number + 1 < config.updates:
            sampler.start(orders(number + 1), sampling)
        clock.lap("sample")
        # 2. Their rewards.
        scores = reward(rollouts)
        clock.lap("score")
        # 3. The reference's view of them.
        reference_bt = None
        if reference is not None and config.kl_coefficient:
            with switched_off(reference):  # of an adapted policy, the base is its reference
                reference_bt = logprobs(
                    reference,
                    rollouts,
                    config.temperature,
                    config.micro_batch,
                    config.max_new_tokens,
                )
        clock.lap("reference")
        # 4. Learn.
        generator = torch.Generator().manual_seed(hash_seed(config.seed, number))
        coefficient = controller.coefficient
        learned = learn(
            actor,
            optimizer,
            rollouts,
            scores,
            reference_bt,
            config,
            coefficient,
            generator,
            stale=any(rollout.revision < number for rollout in rollouts),
        )
        clock.lap("train")
        if config.kl_target:
            controller.update(learned.kl, len(rollouts))
        # 5. The sampler gets the new weights.
        progress.update, progress.coefficient = number + 1, controller.coefficient
        digest = sampler.renew(progress.update)
        digests = {number: digests[number], number + 1: digest}
        clock.lap("sync")
        yield Update(number, learned, coefficient, digest, clock.laps)


def hash_seed(seed: int, number: int) -> int:
    """A seed of its own for each update (SplitMix64's finaliser)."""
    z = (seed + 0x9E3779B97F4A7C15 * (number + 1)) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


def _orders(
    dealer: BatchSampler, prompts: Sequence[tuple[int, ...]], config: PolicyConfig, number: int
) -> list[Order]:
    chosen = dealer.at(number * config.prompts, config.prompts).tolist()
    return [
        Order(group, prompts[item], config.samples, hash_seed(config.seed, number * 65_536 + group))
        for group, item in enumerate(chosen)
    ]


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
