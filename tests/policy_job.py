"""A small policy optimisation as a job: what it starts from, and its specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trainings
from job_specs import policy_spec, train_spec
from plinth.models.weights import save_decoder
from plinth.shared.settings_sections import TrainerSettings
from plinth.trainer.data.shards import Split
from plinth.trainer.loop import Group, TrainConfig, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.planning import plan_train
from plinth.v1 import jobs_pb2 as pb

LENGTH = 64


def made(folder: Path) -> tuple[Path, Path, Path]:
    """(dataset of pairs, model to start from, reward model trained on the pairs)."""
    dataset = trainings.dataset(folder / "d", trainings.pairs(120))
    vocabulary = Split(dataset, "train").info.vocab_size
    save_decoder(trainings.decoder(3, context=LENGTH, vocab_size=vocabulary), folder / "start")
    config = trainings.config(
        dataset,
        objective="reward",
        init_from=str(folder / "start"),
        model=None,
        sequence_length=LENGTH,
        steps=20,
        learning_rate=3e-3,
    )
    job = JobFolder(trainings.job(folder / "r", config))
    assert train(config, job, Group()) == "succeeded", job.outcome()
    return dataset, folder / "start", job.model


def spec(**changes: Any) -> pb.TrainSpec:
    """GRPO, unless told otherwise; `policy` changes the section of that name."""
    policy = {"samples": 4, "max_new_tokens": 10, **changes.pop("policy", {})}
    fields = {
        "objective": "grpo",
        "dataset": "d@1",
        "init_from": "m@1",
        "reward": "r@1",
        "batch_size": 16,
        "steps": 6,
        "learning_rate": 3e-3,
        "seed": 4,
        "checkpoint_every": 2,
        **changes,
    }
    return train_spec(policy=policy_spec(**policy), **fields)


def planned(dataset: Path, start: Path, reward: Path, **changes: Any) -> TrainConfig:
    """The configuration of such a job on these folders."""
    return plan_train(spec(**changes), dataset, start, TrainerSettings(threads=1), reward)
