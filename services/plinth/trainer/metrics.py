"""What a training job tells Prometheus while it runs here."""

from __future__ import annotations

from plinth.shared.telemetry import counter, gauge
from plinth.trainer.loop.job_folder import JobProgress

_PROGRESS = gauge("trainer_progress_ratio", "How far the job in work is", ["model"])
_FIGURE = gauge(
    "trainer_figure",
    "Figures of the job in work, by name: loss, tokens_per_second, and of a policy reward, kl, gap "
    "(between trainer and sampler, relative) and others",
    ["model", "figure"],
)
RUNNING = gauge("trainer_jobs_running", "Jobs in work at this replica: 0 or 1")
ENDED = counter(
    "trainer_attempts_total",
    "Attempts at jobs by how they ended: succeeded, failed, retried, cancelled, paused, lost",
    ["end"],
)
for _end in ("succeeded", "failed", "retried", "cancelled", "paused", "lost"):
    ENDED.labels(_end)  # a series that appears at 1 shows no increase
_OF_ALL = ("loss", "grad_norm", "learning_rate", "tokens_per_second")


def told(model: str, progress: JobProgress) -> None:
    """The newest figures of the job that makes `model`."""
    _PROGRESS.labels(model).set(progress.done / progress.total if progress.total else 0.0)
    figures = {name: getattr(progress, name) for name in _OF_ALL} | progress.figures
    for name, value in figures.items():
        _FIGURE.labels(model, name).set(value)


def forgotten(model: str) -> None:
    """The job has ended: its last figures would be taken for present ones."""
    for family in (_PROGRESS, _FIGURE):
        family.remove_by_labels({"model": model})
