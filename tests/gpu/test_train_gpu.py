"""A training run on an accelerator: the CPU's losses, and a checkpoint that either can open."""

from __future__ import annotations

import pytest

import trainings
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.setup import set_up
from plinth.trainer.loop.train import take_step

pytestmark = pytest.mark.gpu


def ordinal(device):
    return "cuda:0" if device == "cuda" else device


def losses(config, folder, device, steps=5):
    run = set_up(config, JobFolder(trainings.job(folder, config)), Group(device=device))
    return [float(take_step(run, 1e-3).loss) for _ in range(steps)]


@pytest.mark.usefixtures("cpu_kernels")
def test_the_first_steps_are_those_of_the_cpu(tmp_path, device):
    made = trainings.dataset(tmp_path / "data", trainings.texts(300))
    on_cpu = losses(trainings.config(made), tmp_path / "cpu", "cpu")
    on_gpu = losses(trainings.config(made, device=device), tmp_path / "gpu", ordinal(device))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_whole_run(tmp_path, precision, device):
    made = trainings.dataset(tmp_path / "data", trainings.texts(300))
    config = trainings.config(made, device=device, precision=precision, steps=40)
    job = JobFolder(trainings.job(tmp_path / "job", config))
    assert train(config, job, Group(device=ordinal(device))) == "succeeded", job.outcome()
    assert job.outcome()["metrics"]["train_loss"] < 4.0
