"""What a run tells people: progress while it goes on, figures at its end.

The figures belong to the run, however many attempts it took: the loss of its last step, and the
rate over all the time that its steps took. So both go with the checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from plinth.models.adapters.lora import base_tensors
from plinth.trainer.loop.job_folder import JobProgress, Throttle
from plinth.trainer.loop.setup import Run

_PROGRESS_S = 0.5


@dataclass
class StepResult:
    """Figures of one optimiser step; tensors so that an accelerator need not be waited for."""

    number: int  # of the step, from 1
    loss: Tensor  # nats per token (or per pair) over the global batch
    grad_norm: Tensor
    learning_rate: float
    tokens: int
    stop: bool  # the first worker was asked to


@dataclass
class Reporter:
    """Progress for people, written by the first worker and not too often."""

    run: Run
    began: float = field(default_factory=time.monotonic)
    first_step: int = field(init=False)
    first_seconds: float = field(init=False)
    progress: JobProgress = field(init=False)
    last: StepResult | None = field(init=False, default=None)  # of this attempt

    def __post_init__(self) -> None:
        state = self.run.state
        self.first_step, self.first_seconds = state.step, state.seconds
        note = f"{state.precision}, {self.run.config.workers} × {state.threads} threads"
        if state.step:
            note = f"resumed at step {state.step}; {note}"
        self.progress = JobProgress(
            done=state.step,
            total=state.total,
            loss=state.loss,
            tokens_per_second=self._rate(),
            note=note,
        )
        self._throttle = Throttle(_PROGRESS_S)
        self._write()

    def step(self, result: StepResult) -> None:
        """After each step; now and then, and after the last one, it is told."""
        state, self.last = self.run.state, result
        if self.run.group.rank != 0:
            return
        if not self._throttle.due() and state.step < state.total:
            return
        self._keep()
        per_step = (time.monotonic() - self.began) / (state.step - self.first_step)
        self.progress.done = state.step
        self.progress.loss = state.loss
        self.progress.learning_rate = result.learning_rate
        self.progress.grad_norm = float(result.grad_norm)
        self.progress.tokens_per_second = self._rate()
        self.progress.eta_seconds = per_step * (state.total - state.step)
        self._write()

    def save(self) -> None:
        """Checkpoint, with the figures of the last step in it."""
        self._keep()
        self.run.save()

    def evaluation(self, found: Mapping[str, float]) -> None:
        """Held-out figures by name."""
        if "validation_bits_per_byte" in found:
            self.progress.validation_bits_per_byte = found["validation_bits_per_byte"]
        if "validation_accuracy" in found:
            self.progress.note = f"held-out accuracy {found['validation_accuracy']:.3f}"
        self._write()

    def metrics(self, found: Mapping[str, float]) -> dict[str, float]:
        """What is published with the model."""
        state = self.run.state
        return {
            "steps": float(state.total),
            "tokens": float(state.tokens),
            **_sizes(self.run.decoder),
            "train_loss": state.loss,
            "tokens_per_second": self._rate(),
            **found,
        }

    def _keep(self) -> None:
        """Into the state: the last step's loss, and the time until now if there was a step."""
        if self.last is not None:
            self.run.state.loss = float(self.last.loss)
            self.run.state.seconds = self.first_seconds + time.monotonic() - self.began

    def _rate(self) -> float:
        """Tokens per second over the whole run; 0 before its first step."""
        state = self.run.state
        return state.tokens / state.seconds if state.seconds else 0.0

    def _write(self) -> None:
        if self.run.group.rank == 0:
            self.run.folder.write_progress(self.progress)


def _sizes(decoder: nn.Module) -> dict[str, float]:
    """Of the model that is published; and, where it was frozen, of what was trained."""
    parameters = float(sum(t.numel() for t in base_tensors(decoder).values()))
    if all(p.requires_grad for p in decoder.parameters()):
        return {"parameters": parameters}
    trained = float(sum(p.numel() for p in decoder.parameters() if p.requires_grad))
    return {"parameters": parameters, "trained_parameters": trained}
