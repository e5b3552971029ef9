"""A policy optimisation as a job: folder in, model out, killed at any point and gone on with.

1. The policy starts from `init_from`; a frozen copy is the reference, and the reward model judges.
2. Prompts are what comes before the answers of the dataset; the held-out ones are answered before
   the first update and after the last, with the same noise.
3. `loop.optimise` does the work; after each update the run may be checkpointed or stopped.
"""

from __future__ import annotations

import numpy as np

from plinth.algos.intervals import wilson
from plinth.models.weights import save_decoder
from plinth.shared.errors import FailedPrecondition, PlinthError
from plinth.shared.rollouts import StopAsked
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.group import Group
from plinth.trainer.loop.job_folder import JobFolder, JobProgress
from plinth.trainer.loop.setup import rounding, write_adapter, write_model
from plinth.trainer.policy import loop
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.job import PolicyJob

_EVERY = 10  # updates between checkpoints, unless the job says
# Of an update, told beside its reward; see `Learned`.
_FIGURES = (
    "kl",
    "entropy",
    "value_loss",
    "clipped",
    "update_kl",
    "zero_variance_groups",
    "dropped_steps",
    "gap",
    "gap_within",
    "length",
    "ended",
    "importance",
)


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
    job = PolicyJob.open(config, folder, group)
    try:
        return _run(job, config, folder)
    except StopAsked:  # while answers were awaited: the last update stands
        return job.stop()
    finally:
        job.close()


def _run(job: PolicyJob, config: TrainConfig, folder: JobFolder) -> str:
    before = job.held_out_before()
    progress = loop.PolicyState(job.state.step, job.state.controllers.get("kl", 0.0))
    report = JobProgress(progress.update, config.steps, loss=job.state.loss, note="sampling")
    if told := folder.progress():  # a run that only lacked its model still has figures to report
        report.tokens_per_second = told.tokens_per_second
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
        heard=job.judge.begin,
    )
    every = config.checkpoint_every or _EVERY
    for update in updates:
        job.state.step, job.state.controllers["kl"] = progress.update, progress.coefficient
        job.state.tokens += update.learned.tokens
        job.state.loss = update.learned.policy_loss
        job.heard(update.learned)
        _tell(report, update, config, job.policy)
        folder.write_progress(report)
        if progress.update % every == 0 or progress.update == config.steps:
            job.save()
        if folder.requested() is not None:
            return job.stop()
    _check_taught(job)
    metrics = _metrics(report, job, before)
    write_adapter(folder, config, job.actor.policy)
    write_model(folder, config, lambda out: save_decoder(job.actor.policy, out))
    metrics |= rounding(folder, config, job.actor.policy)
    folder.end("succeeded", metrics=metrics)
    return "succeeded"


def _tell(
    report: JobProgress, update: loop.Update, config: TrainConfig, policy: PolicyConfig
) -> None:
    learned = update.learned
    spent = sum(update.seconds.values())
    report.done = update.number + 1
    report.loss, report.grad_norm = learned.policy_loss, learned.grad_norm
    report.learning_rate = config.learning_rate
    report.tokens_per_second = learned.tokens / spent
    report.eta_seconds = spent * (report.total - report.done)
    report.figures = {
        "reward": learned.score,
        **{name: getattr(learned, name) for name in _FIGURES},
        **{f"seconds_{name}": seconds for name, seconds in update.seconds.items()},
    }
    if not policy.ahead:  # answers of older weights may differ
        report.figures["gap_limit"] = policy.max_gap
    report.note = (
        f"reward {learned.score:.3f} · KL {learned.kl:.2f} nats · {learned.length:.0f} tokens · "
        f"gap {learned.gap:.0e}"
    )
    if learned.zero_variance_groups and not policy.has_critic:
        report.note += (
            f" · {learned.zero_variance_groups} of {learned.groups} groups taught nothing"
        )
    elif learned.zero_variance_groups and policy.answers > 1:
        report.note += f" · the rewards of all {policy.answers} answers were equal"
    if learned.dropped_steps:
        report.note += f" · {learned.dropped_steps} steps dropped at {learned.update_kl:.2f} nats"


def _check_taught(job: PolicyJob) -> None:
    """A run whose every update was void would publish what it started from as a success."""
    policy, updates = job.policy, job.state.total
    if job.taught:
        return
    whose = "" if policy.has_critic else "to a prompt "
    more = "" if policy.has_critic else f", or more samples per prompt (now {policy.samples})"
    raise FailedPrecondition(
        f"in all {updates} updates the answers {whose}had equal rewards (the last "
        f"{job.last_score:g} on average), so there was nothing to learn: give rewards that tell "
        f"answers apart, prompts that are neither always nor never solved{more}, or a higher "
        f"temperature (now {policy.temperature:g})",
        reason="ZERO_VARIANCE",
    )


def _metrics(report: JobProgress, job: PolicyJob, before: list[float]) -> dict[str, float]:
    """Held-out rewards of the policy as it was and as it is, prompt by prompt."""
    metrics = {
        "steps": float(report.total),
        "tokens": float(job.state.tokens),
        "train_loss": report.loss,
        "tokens_per_second": report.tokens_per_second,
        "widest_gap": job.widest_gap,  # |Δ log p| between trainer and sampler, over all updates
        "void_updates": float(
            job.void_updates
        ),  # in which all rewards that are compared were equal
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
