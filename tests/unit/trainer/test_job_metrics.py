"""What a job tells Prometheus, and that nothing of it outlives the job."""

from __future__ import annotations

from prometheus_client import REGISTRY

from plinth.trainer import metrics
from plinth.trainer.loop.job_folder import JobProgress


def figure(model: str, name: str) -> float | None:
    return REGISTRY.get_sample_value("plinth_trainer_figure", {"model": model, "figure": name})


def test_figures_are_there_while_the_job_is() -> None:
    progress = JobProgress(3, 12, loss=1.5, tokens_per_second=99.0, figures={"reward": 0.25})
    metrics.told("m1", progress)
    metrics.told("m2", progress)
    assert [figure("m1", name) for name in ("loss", "tokens_per_second", "reward")] == [
        1.5,
        99,
        0.25,
    ]
    assert REGISTRY.get_sample_value("plinth_trainer_progress_ratio", {"model": "m1"}) == 0.25
    metrics.forgotten("m1")
    assert figure("m1", "loss") is None
    assert figure("m2", "loss") == 1.5
    metrics.forgotten("m2")
    metrics.forgotten("m2")  # a job that said nothing
