"""Checkpoints by time, made by workers whose clocks are not one."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from types import SimpleNamespace

import trainings
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from worker_groups import run_group

STEPS = 12


def with_a_clock_of_its_own(rank, world, folder, config):
    """Rank 1's runs faster than rank 0's: its half minutes end at other steps."""
    loop = importlib.import_module("plinth.trainer.loop.train")
    ticks = itertools.count(step=7.0 if rank == 0 else 11.0)
    loop.time = SimpleNamespace(monotonic=lambda: next(ticks))
    train(config, JobFolder(folder), Group(rank, world))


def test_workers_checkpoint_at_the_same_steps(tmp_path):
    """All wait at a checkpoint, so all must come to it; rank 0's clock says when."""
    dataset = trainings.dataset(tmp_path / "d", trainings.texts(60))
    config = replace(
        trainings.config(dataset),
        workers=2,
        checkpoint_every=0,
        steps=STEPS,
        batch_size=4,
        micro_batch_size=2,
    )
    folder = trainings.job(tmp_path / "job", config)
    run_group(2, tmp_path / "group", with_a_clock_of_its_own, folder, config, timeout_s=20)
    job = JobFolder(folder)
    assert job.outcome()["status"] == "succeeded"
    # Two are kept: the last, and rank 0's of before it; a look is 7 s after the one before it.
    steps = [int(path.name[5:]) for path in checkpoints(job.checkpoints)]
    assert steps == [STEPS - STEPS % 5, STEPS]
