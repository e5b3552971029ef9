"""The loop, once for every objective: data → forward → backward → step → checkpoint → metrics.

Killed at any point and started again on the same folder, a run ends with the same weights, bit
for bit on one kind of CPU: batches are a function of the step, everything chosen by measurement is
in the first checkpoint, threads are fixed, and gradients are summed in the order of ranks.

Knows neither who started it nor who reads its progress file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from statistics import median

import torch

from plinth.algos.schedules import Schedule
from plinth.models.adapters.lora import dropping
from plinth.shared.errors import FailedPrecondition, PlinthError
from plinth.trainer.finite import ADVICE, require_finite_figures
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.group import Group
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.report import Reporter, StepResult
from plinth.trainer.loop.setup import Run, set_up

_CHECKPOINT_S = 30.0
_TRIAL_STEPS = (2, 5)  # warm-up, timed
_DEVICE_CHECK_STEPS = 10  # an accelerator is asked for its loss this often
_TIME_FOR_STEPS = 0.95  # of max_seconds; the rest is for checkpoints and the evaluation


def train(config: TrainConfig, folder: JobFolder, group: Group) -> str:
    """Run to the end, or until asked to stop; the outcome is in the folder and returned.

    A PlinthError (not-a-number, full disk, unusable data) is recorded as the outcome, "failed";
    anything else is raised: whoever started the worker may start it again.
    """
    if (ended := folder.outcome()) is not None:
        return str(ended["status"])
    try:
        return _train(config, folder, group)
    except PlinthError as error:
        # Workers fail together or rank 0 alone does; both tell the same story.
        folder.end("failed", error=error)
        return "failed"


def _train(config: TrainConfig, folder: JobFolder, group: Group) -> str:
    started = time.monotonic()
    run = set_up(config, folder, group)
    if run.state.total == 0:
        run.state.total = _steps_in(config.max_seconds, run, started)
        if run.state.total == 0:
            return _stop(run)  # asked to before anything was decided
    run.save()
    schedule = Schedule.of(
        config.schedule,
        config.learning_rate,
        run.state.total,
        config.warmup_fraction,
        config.decay_fraction,
    )
    report = Reporter(run)
    checkpoint_due = _CheckpointClock(config.checkpoint_every, group)
    while run.state.step < run.state.total:
        result = take_step(run, schedule.at(run.state.step))
        if result.stop:
            return _stop(run, report)
        report.step(result)
        if _due(run.state.step, config.eval_every) and run.state.step < run.state.total:
            _require_finite(result)
            report.evaluation(_evaluate(run))
        if checkpoint_due(run.state.step):
            _require_finite(result)
            report.save()
    return _finish(run, report)


def take_step(run: Run, learning_rate: float) -> StepResult:
    """One optimiser step on the batch that belongs to `run.state.step`.

    The loss is averaged over the tokens (or pairs) of the global batch, however they fall on
    workers and micro-batches. A stop that was asked for is agreed on before any work.
    """
    config, group = run.config, run.group
    share = config.batch_size // group.world
    position = run.state.step * config.batch_size + group.rank * share
    items = run.sampler.at(position, share).tolist()
    micro = config.micro_batch_size
    batches = [run.objective.batch(items[i : i + micro]) for i in range(0, share, micro)]
    asked = group.rank == 0 and run.folder.requested() is not None
    weight, tokens, stop = group.sum(
        [sum(b.weight for b in batches), sum(b.tokens for b in batches), asked]
    )
    if stop:
        nothing = torch.zeros(())
        return StepResult(run.state.step, nothing, nothing, learning_rate, 0, True)
    run.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=group.device)
    for number, batch in enumerate(batches):
        # Noise by position, not by history: a resumed run drops what it would have dropped.
        noise = dropping(run.decoder, config.seed, position // micro + number)
        with run.autocast(), noise:
            loss = run.objective.loss_sum(run.decoder, batch.to(group.device)) / weight
        torch.autograd.backward(loss)
        total += loss.detach()
    parameters = [p for p in run.decoder.parameters() if p.requires_grad]
    group.sum_gradients(parameters)
    loss_all = total if group.world == 1 else torch.tensor(group.sum([float(total)])[0])
    limit = config.clip_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=False)
    result = StepResult(run.state.step + 1, loss_all, norm, learning_rate, int(tokens), False)
    if group.device == "cpu" or _due(run.state.step, _DEVICE_CHECK_STEPS):
        _require_finite(result)
    for parameter_group in run.optimizer.param_groups:
        parameter_group["lr"] = learning_rate
    run.optimizer.step()
    run.state.step += 1
    run.state.tokens += int(tokens)
    return result


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _require_finite(result: StepResult) -> None:
    if not (math.isfinite(float(result.loss)) and math.isfinite(float(result.grad_norm))):
        raise FailedPrecondition(
            f"the loss is not a number at step {result.number} (loss {float(result.loss)}, "
            f"gradient norm {float(result.grad_norm)}); the last good checkpoint is kept. {ADVICE}",
            reason="LOSS_NOT_FINITE",
        )


def _steps_in(seconds: float, run: Run, started: float) -> int:
    """How many steps fit, by timing some at a learning rate of zero, which changes nothing.

    0 when it was asked to stop meanwhile.
    """
    warmup, timed = _TRIAL_STEPS
    times = []
    for _ in range(warmup + timed):
        begin = time.monotonic()
        if take_step(run, 0.0).stop:
            return 0
        times.append(time.monotonic() - begin)
    run.renew_optimizer()
    run.state.step = run.state.tokens = 0
    left = seconds * _TIME_FOR_STEPS - (time.monotonic() - started)
    (steps,) = run.group.from_first([max(1, int(left / median(times[warmup:])))])
    return int(steps)


def _evaluate(run: Run) -> Mapping[str, float]:
    """Held-out figures, all finite; the weights' last step is among what they look at."""
    found = run.objective.evaluate(run.decoder, run.group, run.config.micro_batch_size)
    what = f"the held-out figures after step {run.state.step}"
    require_finite_figures(found or {"loss": _loss_again(run)}, what)
    return found


def _loss_again(run: Run) -> float:
    """Where nothing was held out: the loss of the last step's first sequences, after it."""
    config, group = run.config, run.group
    at = (run.state.step - 1) * config.batch_size
    items = run.sampler.at(at + group.rank * config.micro_batch_size, config.micro_batch_size)
    batch = run.objective.batch(items.tolist()).to(group.device)
    with torch.no_grad(), run.autocast():
        (loss,) = group.sum([float(run.objective.loss_sum(run.decoder, batch))])
    return loss


def _stop(run: Run, report: Reporter | None = None) -> str:
    """Keep what was learnt; "cancel" and "pause" differ only in what the asker does next."""
    if report is not None:
        report.save()
    status = "paused" if run.folder.requested() == "pause" else "cancelled"
    if run.group.rank == 0:
        run.folder.end(status, step=run.state.step)
    return status


def _finish(run: Run, report: Reporter) -> str:
    if report.last is not None:
        _require_finite(report.last)
    report.save()
    evaluation = _evaluate(run)
    report.evaluation(evaluation)
    if run.group.rank == 0:
        saved = run.save_model()
        run.folder.end("succeeded", metrics=report.metrics(evaluation) | saved)
    return "succeeded"


class _CheckpointClock:
    """Every so many steps, or every so many seconds: those of the first worker, since all wait for
    one another at a checkpoint and their clocks are not one."""

    def __init__(self, every: int, group: Group) -> None:
        self._every, self._group, self._last = every, group, time.monotonic()

    def __call__(self, step: int) -> bool:
        if self._every:
            return step % self._every == 0
        (due,) = self._group.from_first([time.monotonic() - self._last >= _CHECKPOINT_S])
        if due:
            self._last = time.monotonic()
        return bool(due)
