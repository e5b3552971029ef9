"""A policy optimisation as a job: folder in, model out, killed at any point and gone on with.

1. The policy starts from `init_from`; a frozen copy is the reference, and the reward model judges.
2. Prompts are what comes before the answers of the dataset; the held-out ones are answered before
   the first update and after the last, with the same noise.
3. `loop.optimise` does the work; after each update the run may be checkpointed or stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from plinth.algos.intervals import wilson
from plinth.models.decoder import Decoder
from plinth.models.reward import load_reward_model
from plinth.models.weights import save_decoder
from plinth.shared.errors import FailedPrecondition, InvalidArgument, PlinthError
from plinth.shared.rollouts import StopAsked
from plinth.shared.settings import load_settings
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
from plinth.trainer.loop.job_folder import JobFolder, Progress, replace_json
from plinth.trainer.loop.machine import choose_threads
from plinth.trainer.loop.setup import adapt, make_decoder, write_adapter, write_model
from plinth.trainer.policy import loop
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.judge import Judge
from plinth.trainer.policy.model import Actor
from plinth.trainer.policy.prompts import HELD_OUT, answer, prompts_of, sampler_for
from plinth.trainer.policy.rollouts import Sampler
from plinth.trainer.policy.shards import ShardSampler
from plinth.trainer.policy.stage_rewards import StageRewards

_EVERY = 10  # updates between checkpoints, unless the job says


def optimise_policy(config: TrainConfig, folder: JobFolder, group: Group) -> str:
    """Run to the end, or until asked to stop; the outcome is in the folder and returned."""
    if (ended := folder.outcome()) is not None:
        return str(ended["status"])
    try:
        return _optimise(config, folder, group)
    except PlinthError as error:
        folder.end("failed", error=error)
        return "failed"


def _optimise(config: TrainConfig, folder: JobFolder, group: Group) -> str:
    job = _Job.open(config, folder, group)
    try:
        return _run(job, config, folder)
    except StopAsked:  # while answers were awaited: the last update stands
        return job.stop()
    finally:
        for part in (job.sampler, job.judge):
            if isinstance(part, ShardSampler | StageRewards):
                part.close()


def _run(job: _Job, config: TrainConfig, folder: JobFolder) -> str:
    before = job.held_out_before()
    progress = loop.Progress(job.state.step, job.state.controllers.get("kl", 0.0))
    report = Progress(done=progress.update, total=config.steps, note="sampling")
    folder.write_progress(report)
    updates = loop.optimise(
        job.actor,
        job.reference,
        job.sampler,
        job.judge,
        job.prompts,
        job.policy,
        job.optimizer,
        progress,
        stop_ids=job.stop_ids,
    )
    every = config.checkpoint_every or _EVERY
    for update in updates:
        job.state.step, job.state.controllers["kl"] = progress.update, progress.coefficient
        job.state.tokens += update.learned.tokens
        _tell(report, update, config)
        folder.write_progress(report)
        if progress.update % every == 0 or progress.update == config.steps:
            job.save()
        if folder.requested() is not None:
            return job.stop()
    metrics = _metrics(report, job, before)
    write_adapter(folder, config, job.actor.policy)
    write_model(folder, config, lambda out: save_decoder(job.actor.policy, out))
    folder.end("succeeded", metrics=metrics)
    return "succeeded"


def _tell(report: Progress, update: loop.Update, config: TrainConfig) -> None:
    learned = update.learned
    spent = sum(update.seconds.values())
    report.done = update.number + 1
    report.loss, report.grad_norm = learned.policy_loss, learned.grad_norm
    report.learning_rate = config.learning_rate
    report.tokens_per_second = learned.tokens / spent
    report.eta_seconds = spent * (report.total - report.done)
    report.note = (
        f"reward {learned.score:.3f} · KL {learned.kl:.2f} nats · {learned.length:.0f} tokens · "
        f"gap {learned.gap:.0e}"
    )


def _metrics(report: Progress, job: _Job, before: list[float]) -> dict[str, float]:
    """Held-out rewards of the policy as it was and as it is, prompt by prompt."""
    metrics = {
        "steps": float(report.total),
        "tokens": float(job.state.tokens),
        "train_loss": report.loss,
        "tokens_per_second": report.tokens_per_second,
    }
    if not before:  # nothing was held out
        return metrics
    after = job.held_out()
    wins = sum((a > b) + 0.5 * (a == b) for a, b in zip(after, before, strict=True))
    low, high = wilson(wins, len(after))
    return metrics | {
        "validation_prompts": float(len(after)),
        "validation_reward_before": float(np.mean(before)),
        "validation_reward": float(np.mean(after)),
        "validation_win_rate": wins / len(after),
        "validation_win_rate_low": low,
        "validation_win_rate_high": high,
    }


@dataclass
class _Job:
    """All that a run needs, opened."""

    config: TrainConfig
    policy: PolicyConfig
    folder: JobFolder
    actor: Actor
    reference: Decoder | None
    judge: Judge | StageRewards
    sampler: Sampler
    optimizer: torch.optim.Optimizer
    state: TrainState
    prompts: list[tuple[int, ...]]
    held_out_prompts: list[tuple[int, ...]]
    stop_ids: frozenset[int]

    @classmethod
    def open(cls, config: TrainConfig, folder: JobFolder, group: Group) -> _Job:
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
            raise InvalidArgument(
                f"the dataset has {len(prompts)} prompts of at most {room} tokens, fewer than one "
                f"batch of {policy.prompts}; make max_new_tokens or batch_size smaller",
                field="batch_size",
            )
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

    def save(self) -> None:
        save_checkpoint(self.folder.checkpoints, self.actor, self.optimizer, self.state)

    def stop(self) -> str:
        """As was asked, at the last update; the outcome's status."""
        self.save()
        status = "paused" if self.folder.requested() == "pause" else "cancelled"
        self.folder.end(status, step=self.state.step)
        return status

    def held_out_before(self) -> list[float]:
        """Rewards of the held-out prompts before the first update; kept for a run that goes on."""
        path = self.folder.path / "before.json"
        if not path.is_file():
            replace_json(path, {"rewards": self.held_out()})
        rewards: list[float] = json.loads(path.read_text())["rewards"]
        return rewards

    def held_out(self) -> list[float]:
        """Rewards of one answer to each held-out prompt, by the policy as it is now."""
        if not self.held_out_prompts:
            return []
        self.sampler.renew(self.state.step)
        rollouts = answer(self.sampler, self.held_out_prompts, self.policy, self.stop_ids)
        return self.judge(rollouts)


def _sampler(policy: PolicyConfig, decoder: Decoder, folder: JobFolder, device: str) -> Sampler:
    """An engine of this process over the policy's own tensors, or the shards."""
    if policy.rollouts == "local":
        return sampler_for(decoder, max(policy.answers, HELD_OUT), device)
    return ShardSampler(
        decoder,
        folder.path / "weights",
        folder.path.name,
        _redis_url("rollouts by shards"),
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
        folder.path.name,
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
