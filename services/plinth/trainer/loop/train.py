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
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from plinth.algos.schedules import Schedule
from plinth.models.lora import base_tensors, dropping
from plinth.shared.errors import FailedPrecondition, PlinthError
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.group import Group
from plinth.trainer.loop.job_folder import JobFolder, Progress, Throttle
from plinth.trainer.loop.setup import Run, set_up

_PROGRESS_S = 0.5
_CHECKPOINT_S = 30.0
_TRIAL_STEPS = (2, 5)  # warm-up, timed
_DEVICE_CHECK_STEPS = 10  # an accelerator is asked for its loss this often
_TIME_FOR_STEPS = 0.95  # of max_seconds; the rest is for checkpoints and the evaluation


@dataclass
class StepResult:
    """Figures of one optimiser step; tensors so that an accelerator need not be waited for."""

    loss: Tensor  # nats per token (or per pair) over the global batch
    grad_norm: Tensor
    learning_rate: float
    tokens: int
    stop: bool  # the first worker was asked to


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
    report = _Reporter(run)
    checkpoint_due = _CheckpointClock(config.checkpoint_every)
    while run.state.step < run.state.total:
        result = take_step(run, schedule.at(run.state.step))
        if result.stop:
            return _stop(run)
        report.step(result)
        if _due(run.state.step, config.eval_every) and run.state.step < run.state.total:
            report.evaluation(_evaluate(run))
        if checkpoint_due(run.state.step):
            _require_finite(run, result)
            run.save()
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
        return StepResult(torch.zeros(()), torch.zeros(()), learning_rate, 0, True)
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
    result = StepResult(loss_all, norm, learning_rate, int(tokens), False)
    if group.device == "cpu" or _due(run.state.step, _DEVICE_CHECK_STEPS):
        _require_finite(run, result)
    for parameter_group in run.optimizer.param_groups:
        parameter_group["lr"] = learning_rate
    run.optimizer.step()
    run.state.step += 1
    run.state.tokens += int(tokens)
    return result


def _sizes(decoder: nn.Module) -> dict[str, float]:
    """Of the model that is published; and, where it was frozen, of what was trained."""
    parameters = float(sum(t.numel() for t in base_tensors(decoder).values()))
    if all(p.requires_grad for p in decoder.parameters()):
        return {"parameters": parameters}
    trained = float(sum(p.numel() for p in decoder.parameters() if p.requires_grad))
    return {"parameters": parameters, "trained_parameters": trained}


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _require_finite(run: Run, result: StepResult) -> None:
    if not (math.isfinite(float(result.loss)) and math.isfinite(float(result.grad_norm))):
        raise FailedPrecondition(
            f"the loss is not a number at step {run.state.step + 1} (loss {float(result.loss)}, "
            f"gradient norm {float(result.grad_norm)}); the last good checkpoint is kept. Lower "
            "the learning rate, warm up longer, or use fp32",
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
    return run.objective.evaluate(run.decoder, run.group, run.config.micro_batch_size)


def _stop(run: Run) -> str:
    """Keep what was learnt; "cancel" and "pause" differ only in what the asker does next."""
    if run.state.total:
        run.save()
    status = "paused" if run.folder.requested() == "pause" else "cancelled"
    if run.group.rank == 0:
        run.folder.end(status, step=run.state.step)
    return status


def _finish(run: Run, report: _Reporter) -> str:
    run.save()
    evaluation = _evaluate(run)
    report.evaluation(evaluation)
    if run.group.rank == 0:
        saved = run.save_model()
        run.folder.end("succeeded", metrics=report.metrics(evaluation) | saved)
    return "succeeded"


class _CheckpointClock:
    """Every so many steps, or every so many seconds (the first worker's alone: it writes)."""

    def __init__(self, every: int) -> None:
        self._every, self._last = every, time.monotonic()

    def __call__(self, step: int) -> bool:
        if self._every:
            return step % self._every == 0
        if time.monotonic() - self._last < _CHECKPOINT_S:
            return False
        self._last = time.monotonic()
        return True


@dataclass
class _Reporter:
    """Progress for people, written by the first worker and not too often."""

    run: Run
    began: float = field(default_factory=time.monotonic)
    first_step: int = field(init=False)
    first_tokens: int = field(init=False)
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        state = self.run.state
        self.first_step, self.first_tokens = state.step, state.tokens
        note = f"{state.precision}, {self.run.config.workers} × {state.threads} threads"
        if state.step:
            note = f"resumed at step {state.step}; {note}"
        self.progress = Progress(done=state.step, total=state.total, note=note)
        self._throttle = Throttle(_PROGRESS_S)
        self._write()

    def step(self, result: StepResult) -> None:
        state = self.run.state
        if self.run.group.rank != 0:
            return
        if not self._throttle.due() and state.step < state.total:
            return
        seconds = time.monotonic() - self.began
        steps = state.step - self.first_step
        state.loss = float(result.loss)
        self.progress.done = state.step
        self.progress.loss = state.loss
        self.progress.learning_rate = result.learning_rate
        self.progress.grad_norm = float(result.grad_norm)
        self.progress.tokens_per_second = (state.tokens - self.first_tokens) / seconds
        self.progress.eta_seconds = seconds / steps * (state.total - state.step)
        self._write()

    def evaluation(self, found: Mapping[str, float]) -> None:
        if "validation_bits_per_byte" in found:
            self.progress.validation_bits_per_byte = found["validation_bits_per_byte"]
        if "validation_accuracy" in found:
            self.progress.note = f"held-out accuracy {found['validation_accuracy']:.3f}"
        self._write()

    def metrics(self, found: Mapping[str, float]) -> dict[str, float]:
        state, progress = self.run.state, self.progress
        return {
            "steps": float(state.total),
            "tokens": float(state.tokens),
            **_sizes(self.run.decoder),
            "train_loss": progress.loss,
            "tokens_per_second": progress.tokens_per_second,
            **found,
        }

    def _write(self) -> None:
        if self.run.group.rank == 0:
            self.run.folder.write_progress(self.progress)
