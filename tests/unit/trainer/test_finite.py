"""Nothing that is not finite is kept: no checkpoint, no model, no adapter, no figure.

Weights are poisoned after a step of the real optimiser, as an overflow would; all else is the loop
as it is. "cpu:0" takes the path of accelerators, whose losses are looked at now and then.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

import policy_job
import trainings
from plinth.models.adapters.lora import LoraConfig
from plinth.shared.errors import FailedPrecondition
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.policy.run import optimise_policy

STEPS = 6
LENGTH = policy_job.LENGTH
REASONS = {"LOSS_NOT_FINITE", "WEIGHTS_NOT_FINITE", "FIGURES_NOT_FINITE"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(dataset of pairs, model to start from, reward model trained on the pairs)."""
    return policy_job.made(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def data(made, tmp_path_factory):
    """Objective → dataset."""
    folder = tmp_path_factory.mktemp("data")
    plain = trainings.dataset(folder / "clm", trainings.texts(200))
    chats = trainings.dataset(folder / "sft", trainings.chats(150))
    return {"clm": plain, "sft": chats, "dpo": made[0], "reward": made[0]}


def config(objective, data, made, **changes):
    base = trainings.config(
        data[objective],
        objective=objective,
        init_from=str(made[1]),
        model=None,
        sequence_length=LENGTH,
        steps=STEPS,
        checkpoint_every=1000,
    )
    return replace(base, **changes)


@pytest.fixture
def poison(monkeypatch):
    """poison(k): a weight becomes NaN after the k-th step; with a finite value, all become that."""
    real = torch.optim.AdamW.step

    def after(number, value=math.nan):
        taken = 0

        def step(self, *args, **kwargs):
            nonlocal taken
            real(self, *args, **kwargs)
            taken += 1
            if taken == number:
                with torch.no_grad():
                    if math.isfinite(value):
                        for group in self.param_groups:
                            for parameter in group["params"]:
                                parameter.fill_(value)
                    else:
                        self.param_groups[0]["params"][-1].view(-1)[-1] = value

        monkeypatch.setattr(torch.optim.AdamW, "step", step)

    return after


def all_kept_is_finite(job):
    for path in job.path.rglob("*.safetensors"):
        if path.name == "reference.safetensors":  # NaN marks what is not to be read
            continue
        for name, tensor in load_file(path).items():
            assert not tensor.is_floating_point() or tensor.isfinite().all(), (path, name)
    for path in job.path.rglob("state.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def refused(job):
    assert job.outcome()["status"] == "failed", job.outcome()
    assert job.error().reason in REASONS
    assert "learning rate" in job.error().message
    assert not job.model.exists()
    assert not job.adapter.exists()
    all_kept_is_finite(job)


def any_run():
    """Each objective, whole and as an adapter, and when it broke; `make test` has a third of it."""
    for number, objective in enumerate(("clm", "sft", "dpo", "reward")):
        for lora in (False, True):
            for step in (1, STEPS - 1, STEPS):
                quick = lora == bool(number % 2) and step != STEPS - 1
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param(objective, lora, step, marks=marks)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize(("objective", "lora", "step"), [*any_run()])
def test_a_model_that_broke_at_any_step_is_not_published(
    objective, device, lora, step, data, made, poison, tmp_path
):
    poison(step)
    adapter = asdict(LoraConfig(rank=2, alpha=4)) if lora else None
    made_config = config(objective, data, made, lora=adapter)
    job = JobFolder(trainings.job(tmp_path / "a", made_config))
    assert train(made_config, job, Group(device=device)) == "failed"
    refused(job)


@pytest.mark.parametrize("objective", ["grpo", "ppo"])
@pytest.mark.parametrize("update", [1, 2])
def test_nor_is_a_policy(objective, update, made, poison, tmp_path):
    policy = {"samples": 1} if objective == "ppo" else {}
    made_config = policy_job.planned(*made, objective=objective, steps=2, policy=policy)
    poison(update)
    job = JobFolder(trainings.job(tmp_path / "a", made_config))
    assert optimise_policy(made_config, job, Group()) == "failed"
    assert job.outcome()["status"] == "failed"
    assert not job.model.exists()
    all_kept_is_finite(job)


@pytest.mark.parametrize("control", ["pause", "cancel"])
def test_a_stop_keeps_no_broken_checkpoint(control, data, made, poison, tmp_path):
    """Asked to stop after the step that broke it, before anything has looked."""

    class Stopping(JobFolder):
        looks = 0

        def requested(self):
            self.looks += 1
            return control if self.looks > STEPS - 1 else None

    poison(STEPS - 1)
    made_config = config("clm", data, made)
    job = Stopping(trainings.job(tmp_path / "a", made_config))
    assert train(made_config, job, Group(device="cpu:0")) == "failed"
    refused(job)


@pytest.mark.parametrize("held_out", [True, False])
def test_finite_weights_that_say_nothing_are_not_published(held_out, data, made, poison, tmp_path):
    """Weights so large that the loss overflows, with and without held-out documents."""
    dataset = data["clm"]
    if not held_out:
        dataset = trainings.dataset(tmp_path / "all", trainings.texts(200))
        info = json.loads((dataset / "dataset.json").read_text())
        info["splits"]["validation"] |= {"documents": 0, "tokens": 0, "shards": []}
        (dataset / "dataset.json").write_text(json.dumps(info))
        (dataset / "validation-bytes.bin").write_bytes(b"")
    poison(STEPS, 1e18)
    made_config = config("clm", data, made, dataset=str(dataset))
    job = JobFolder(trainings.job(tmp_path / "a", made_config))
    assert train(made_config, job, Group()) == "failed"
    refused(job)


@pytest.mark.parametrize("figures", [{"reward": math.nan}, {"models": [{"std": math.inf}]}])
def test_no_run_succeeds_with_such_a_figure(figures, tmp_path):
    with pytest.raises(FailedPrecondition, match="not all finite"):
        JobFolder(tmp_path).end("succeeded", metrics=figures)
    assert JobFolder(tmp_path).outcome() is None
