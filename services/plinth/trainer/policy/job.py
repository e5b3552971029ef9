"""All that a policy job needs, opened: models, judge, sampler, prompts, and where it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from plinth.models.decoder import Decoder
from plinth.models.reward import load_reward_model
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.settings import load_settings
from plinth.shared.storage_url import open_storage
from plinth.trainer.checkpoint import (
    TrainState,
    checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
    trained,
)
from plinth.trainer.data.prompt_dataset import checks_of
from plinth.trainer.data.shards import DatasetInfo, Split
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.group import Group
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.machine import choose_threads
from plinth.trainer.loop.setup import adapt, make_decoder
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.judge import Judge
from plinth.trainer.policy.model import Actor
from plinth.trainer.policy.prompts import HELD_OUT, answer, prompts_of, sampler_for
from plinth.trainer.policy.rollouts import RolloutSampler
from plinth.trainer.policy.shards import ShardSampler
from plinth.trainer.policy.stage_rewards import StageRewards
from plinth.trainer.policy.update import Learned


@dataclass
class PolicyJob:
    """All that a run needs, opened."""

    config: TrainConfig
    policy: PolicyConfig
    folder: JobFolder
    actor: Actor
    reference: Decoder | None
    judge: Judge | StageRewards
    sampler: RolloutSampler
    optimizer: torch.optim.Optimizer
    state: TrainState
    prompts: list[tuple[int, ...]]
    held_out_prompts: list[tuple[int, ...]]
    stop_ids: frozenset[int]

    def heard(self, learned: Learned) -> None:
        """Of one more update; what is kept of it goes with the checkpoints."""
        kept = self.state.controllers
        kept["gap"] = max(self.widest_gap, learned.gap)
        kept["void"] = self.void_updates + (learned.zero_variance_groups == learned.groups)
        kept["score"] = learned.score
        kept["lowest"] = min(kept.get("lowest", math.inf), learned.lowest)
        kept["highest"] = max(kept.get("highest", -math.inf), learned.highest)

    @property
    def widest_gap(self) -> float:
        """The largest gap between trainer and sampler so far."""
        return self.state.controllers.get("gap", 0.0)

    @property
    def void_updates(self) -> int:
        """Updates in which all rewards that are compared with one another were equal."""
        return int(self.state.controllers.get("void", 0))

    @property
    def taught(self) -> bool:
        """Whether rewards that are compared differed in any update. A critic compares an answer
        with those of the updates before, so one answer per update will do."""
        if self.policy.has_critic:
            kept = self.state.controllers
            return kept.get("lowest", 0.0) < kept.get("highest", 1.0)
        return self.void_updates < self.state.total

    @property
    def last_score(self) -> float:
        """The mean reward of the last update."""
        return self.state.controllers.get("score", 0.0)

    @classmethod
    def open(cls, config: TrainConfig, folder: JobFolder, group: Group) -> PolicyJob:
        assert config.policy is not None
        policy = PolicyConfig(**config.policy)
        threads = choose_threads(config.threads, 1)
        digest = config.digest()
        found = checkpoints(folder.checkpoints)
        state = (
            read_state(found[-1], digest)
            if found
            else TrainState(digest, step=0, total=config.steps, precision="fp32", threads=threads)
        )
        torch.set_num_threads(state.threads)
        train, validation = (Split(Path(config.dataset), n) for n in ("train", "validation"))
        decoder = make_decoder(config, train).to(group.device)
        critic = None
        if policy.has_critic and config.reward:
            critic = load_reward_model(Path(config.reward))
        if critic is not None and config.lora is not None:
            adapt(critic, config)
        actor = Actor(decoder, value_head=policy.has_critic, critic=critic).to(group.device)
        reference = None
        if policy.kl_coefficient:
            # Without its adapter the policy is its own reference: no second copy.
            reference = decoder if config.lora else make_decoder(config, train).to(group.device)
        optimizer = torch.optim.AdamW(
            [parameter for _, parameter in trained(actor)],
            lr=policy.learning_rate,
            weight_decay=policy.weight_decay,
            fused=True,
        )
        room = decoder.config.context - policy.max_new_tokens
        prompts = prompts_of(train, room)
        if len(prompts) < policy.prompts:
            raise _too_few(train, policy, decoder.config.context, len(prompts))
        if found:
            load_checkpoint(found[-1], actor, optimizer)
        return cls(
            config=config,
            policy=policy,
            folder=folder,
            actor=actor,
            reference=reference,
            judge=_judge(config, policy, folder, train.info, group.device),
            sampler=_sampler(policy, decoder, folder, group.device),
            optimizer=optimizer,
            state=state,
            prompts=prompts,
            held_out_prompts=prompts_of(validation, room)[:HELD_OUT],
            stop_ids=frozenset(decoder.config.eos_ids),
        )

    def close(self) -> None:
        """Ends what reaches out of this process."""
        for part in (self.sampler, self.judge):
            if isinstance(part, ShardSampler | StageRewards):
                part.close()

    def save(self) -> None:
        save_checkpoint(self.folder.checkpoints, self.actor, self.optimizer, self.state)

    def stop(self) -> str:
        """As was asked, at the last update; the outcome's status."""
        self.save()
        status = "paused" if self.folder.requested() == "pause" else "cancelled"
        self.folder.end(status, step=self.state.step)
        return status

    def held_out_before(self) -> list[float]:
        """Rewards of the held-out prompts before the first update; empty where there are none, and
        where a checkpoint does not tell them: the policy is another by then. They go with the
        checkpoints."""
        if self.state.held_out_before is None and self.state.step == 0:
            self.state.held_out_before = self.held_out()
        return self.state.held_out_before or []

    def held_out(self) -> list[float]:
        """Rewards of one answer to each held-out prompt, by the policy as it is now."""
        if not self.held_out_prompts:
            return []
        self.sampler.renew(self.state.step)
        rollouts = answer(self.sampler, self.held_out_prompts, self.policy, self.stop_ids)
        return self.judge(rollouts)


def _too_few(split: Split, policy: PolicyConfig, context: int, fitting: int) -> InvalidArgument:
    """Of prompts. Each way that is named is enough by itself."""
    ways = []
    if fitting:
        ways.append(f"make batch_size at most {fitting * policy.samples}")
    lengths = sorted(map(len, prompts_of(split, context - 1)))
    if len(lengths) >= policy.prompts:
        ways.append(f"make max_new_tokens at most {context - lengths[policy.prompts - 1]}")
    return InvalidArgument(
        f"the dataset has {fitting} prompts of at most {context - policy.max_new_tokens} tokens, "
        f"fewer than one batch of {policy.prompts}; {', or '.join([*ways, 'add prompts'])}",
        field="batch_size",
    )


def _sampler(
    policy: PolicyConfig, decoder: Decoder, folder: JobFolder, device: str
) -> RolloutSampler:
    """An engine of this process over the policy's own tensors, or the shards."""
    if policy.rollouts == "local":
        return sampler_for(decoder, max(policy.answers, HELD_OUT), device)
    return ShardSampler(
        decoder,
        folder.path / "weights",
        folder.job_id,
        _redis_url("rollouts by shards"),
        lambda: open_storage(load_settings().store()),
        stop=lambda: folder.requested() is not None,
    )


def _judge(
    config: TrainConfig,
    policy: PolicyConfig,
    folder: JobFolder,
    info: DatasetInfo,
    device: str,
) -> Judge | StageRewards:
    """A reward model of this process, or the reward stage."""
    if config.reward:
        return Judge(Path(config.reward), policy.micro_batch, device)
    dataset = Path(config.dataset)
    checks = checks_of(dataset, "train") | checks_of(dataset, "validation")
    return StageRewards(
        _redis_url("rewards by the reward stage"),
        folder.job_id,
        config.rewards,
        tokenizer=info.tokenizer,
        checks=checks,
        stop=lambda: folder.requested() is not None,
    )


def _redis_url(what: str) -> str:
    url = load_settings().redis_url
    if url is None:
        raise FailedPrecondition(
            f"{what} go through Redis: set PLINTH_REDIS_URL, or keep them in the worker "
            "(policy.rollouts 'local', a reward model as `reward`)",
            reason="SETTINGS_INVALID",
            field="redis_url",
        )
    return url.get_secret_value()
