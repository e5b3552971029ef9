"""A policy optimisation as a job: from a dataset's prompts and a reward model to a model folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import policy_job
import trainings
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.shared.settings_sections import TrainerSettings
from plinth.trainer.loop import Group, TrainConfig
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.planning import plan_compare, plan_train
from plinth.trainer.policy import run
from plinth.trainer.policy.compare import compare
from plinth.trainer.policy.run import optimise_policy
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb

LENGTH = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(dataset of pairs, model to start from, reward model trained on the pairs)."""
    return policy_job.made(tmp_path_factory.mktemp("policy"))


spec = policy_job.spec


def planned(made, **changes):
    return policy_job.planned(*made, **changes)


@pytest.mark.parametrize("change", [{}, {"objective": "ppo", "policy": {"samples": 1}}])
def test_the_reward_rises_on_prompts_that_were_held_out(made, tmp_path, change) -> None:
    config = planned(made, steps=15, **change)
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert optimise_policy(config, job, Group()) == "succeeded", job.outcome()
    metrics = job.outcome()["metrics"]
    assert metrics["validation_reward"] > metrics["validation_reward_before"]
    assert metrics["validation_win_rate"] > 0.5
    AutoModelForCausalLM.from_pretrained(job.model)
    assert (job.model / "tokenizer.json").is_file()
    assert "reward" in job.progress().note


def test_stopped_between_updates_and_resumed_is_bit_for_bit_the_same(made, tmp_path) -> None:
    config = planned(
        made,
        objective="ppo",
        policy={"samples": 1, "epochs": 2, "minibatches": 2, "kl_target": 1.0},
    )

    class Interrupted(JobFolder):
        looks = 0

        def requested(self):
            self.looks += 1
            return "pause" if self.looks >= 3 else None

    ends = []
    for name, kind in (("whole", JobFolder), ("parts", Interrupted)):
        job = kind(trainings.job(tmp_path / name, config))
        status = optimise_policy(config, job, Group())
        if status == "paused":
            job = JobFolder(job.path)
            job.begin()
            status = optimise_policy(config, job, Group())
        assert status == "succeeded", job.outcome()
        ends.append(load_file(job.model / "model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_killed_before_its_model_it_reports_what_it_had(made, tmp_path, monkeypatch) -> None:
    config = planned(made, steps=2)
    job = JobFolder(trainings.job(tmp_path / "a", config))
    with monkeypatch.context() as dying:
        dying.setattr(run, "write_model", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            optimise_policy(config, job, Group())
    told = job.progress()
    assert {"reward", "kl", "gap", "seconds_sample"} <= told.figures.keys()
    assert optimise_policy(config, job, Group()) == "succeeded", job.outcome()
    metrics = job.outcome()["metrics"]
    assert metrics["train_loss"] == told.loss != 0
    assert metrics["tokens_per_second"] == told.tokens_per_second
    assert 0 < told.figures["gap"] <= metrics["widest_gap"] < 1e-4


def indifferent(folder, target):
    """The reward model with a head of zeros: whatever is said has the reward 0."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    (head,) = (name for name in tensors if name.startswith("score"))
    save_file({**tensors, head: torch.zeros_like(tensors[head])}, target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, r"answers to a prompt had equal rewards .*more samples per prompt \(now 4\)"),
        ({"objective": "rloo"}, r"answers to a prompt had equal rewards"),
        ({"objective": "ppo", "policy": {"samples": 1}}, r"in all 2 updates the answers had equal"),
    ],
)
def test_a_run_that_was_taught_nothing_does_not_succeed(made, tmp_path, change, says) -> None:
    """Also when it was stopped in between; and each update has said so."""
    dataset, start, reward = made
    judge = indifferent(reward, tmp_path / "judge")
    config = policy_job.planned(dataset, start, judge, steps=2, **change)

    class Paused(JobFolder):
        def requested(self):
            return "pause" if self.progress().done else None

    job = Paused(trainings.job(tmp_path / "a", config))
    assert optimise_policy(config, job, Group()) == "paused"
    assert re.search("taught nothing|all [0-9]+ answers were equal", job.progress().note)
    assert job.progress().figures["zero_variance_groups"] > 0
    job = JobFolder(job.path)
    job.begin()
    assert optimise_policy(config, job, Group()) == "failed"
    error = job.error()
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "ZERO_VARIANCE"
    assert re.search(says, error.message)
    assert not job.model.exists()


def test_a_run_that_was_taught_something_says_how_often_it_was_not(made, tmp_path) -> None:
    config = planned(made, steps=2)
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert optimise_policy(config, job, Group()) == "succeeded", job.outcome()
    assert job.outcome()["metrics"]["void_updates"] == 0


@pytest.mark.parametrize(("judge", "status"), [("reward", "succeeded"), ("indifferent", "failed")])
def test_a_critic_learns_from_one_answer_an_update(made, tmp_path, judge, status) -> None:
    """It compares with the updates before: only rewards that are equal over all teach nothing."""
    dataset, start, reward = made
    folder = reward if judge == "reward" else indifferent(reward, tmp_path / "judge")
    config = policy_job.planned(
        dataset, start, folder, steps=3, batch_size=1, objective="ppo", policy={"samples": 1}
    )
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert optimise_policy(config, job, Group()) == status, job.outcome()
    assert "equal" not in job.progress().note


@pytest.mark.parametrize("kept", ["folder", "checkpoints alone", "an older version's"])
def test_before_is_before_the_first_update(made, tmp_path, kept) -> None:
    """A run that goes on compares with the policy as it was, or with nothing: the checkpoint tells
    it, wherever that was put back."""
    config = planned(made, steps=4, checkpoint_every=2)
    whole = JobFolder(trainings.job(tmp_path / "whole", config))
    assert optimise_policy(config, whole, Group()) == "succeeded"

    class Paused(JobFolder):
        def requested(self):
            return "pause" if self.progress().done >= 2 else None

    job = Paused(trainings.job(tmp_path / "parts", config))
    assert optimise_policy(config, job, Group()) == "paused"
    again = JobFolder(trainings.job(tmp_path / "again", config))
    if kept == "folder":
        again = JobFolder(job.path)
    else:
        shutil.copytree(job.checkpoints, again.checkpoints)
    if kept == "an older version's":
        for path in again.checkpoints.glob("*/state.json"):
            state = json.loads(path.read_text())
            del state["held_out_before"]
            path.write_text(json.dumps(state))
    again.begin()
    assert optimise_policy(config, again, Group()) == "succeeded", again.outcome()
    whole, again = (one.outcome()["metrics"] for one in (whole, again))
    figures = {name for name in whole if name.startswith("validation_")}
    assert "validation_reward_before" in figures
    if kept == "an older version's":
        assert not figures & again.keys()
    else:
        assert {name: again[name] for name in figures} == {name: whole[name] for name in figures}


def test_models_are_compared_on_the_same_prompts(made, tmp_path) -> None:
    dataset, start, reward = made
    better = JobFolder(trainings.job(tmp_path / "b", planned(made, steps=20)))
    assert optimise_policy(planned(made, steps=20), better, Group()) == "succeeded"
    ask = pb.CompareSpec(
        dataset="d@1", models=["m@1", "m@1", "b@1"], reward="r@1", max_new_tokens=10
    )
    config = plan_compare(
        ask, dataset, [start, start, better.model], reward, TrainerSettings(threads=1)
    )
    job = JobFolder(trainings.job(tmp_path / "c", config))
    assert compare(TrainConfig.read(job.path), job, Group()) == "succeeded", job.outcome()
    same, twin, trained = job.outcome()["metrics"]["models"]
    assert same == twin  # the same noise for the same weights: ties, which count half
    assert same["win_rate"] == 0.5
    prompts = job.outcome()["metrics"]["prompts"]
    assert same["ties"] == same["same_answers"] == prompts
    assert trained["wins"] + trained["losses"] + trained["ties"] == prompts
    assert trained["wins"] > trained["losses"]
    assert trained["win_rate"] > 0.5
    assert trained["win_rate_low"] < trained["win_rate"] < trained["win_rate_high"]
    report = json.loads((job.model / "comparison.json").read_text())
    assert report["models"] == [same, twin, trained]
    assert len(report["shown"]) == 3
    held_out = [line["chosen"][0]["content"] for line in documents(dataset.parent / "corpus")]
    for shown in report["shown"]:
        assert shown["reference"] in held_out
        assert shown["0"] == shown["1"]
    for figures in report["models"]:
        assert 0 <= figures["distinct_trigrams"] <= 1
        assert 0 < figures["reference_p_value"] <= 1


def documents(corpus: Path) -> list[dict[str, Any]]:
    """What is held out of a corpus artifact."""
    (file,) = (corpus / "validation").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_comparison_of_one_is_refused() -> None:
    ask = pb.CompareSpec(dataset="d@1", models=["m@1"], reward="r@1")
    with pytest.raises(InvalidArgument, match="2 to 8"):
        check_spec(pb.JobSpec(output_name="x", compare=ask))
    ask = pb.CompareSpec(dataset="d@1", models=["m@1", "n@1"], reward="r@1", prompts=1)
    with pytest.raises(InvalidArgument, match="0 for all or at least 2"):
        check_spec(pb.JobSpec(output_name="x", compare=ask))


def test_no_more_prompts_are_answered_than_are_asked_for(made, tmp_path) -> None:
    dataset, start, reward = made
    ask = pb.CompareSpec(
        dataset="d@1", models=["m@1", "m@1"], reward="r@1", max_new_tokens=4, prompts=3
    )
    config = plan_compare(ask, dataset, [start, start], reward, TrainerSettings(threads=1))
    job = JobFolder(trainings.job(tmp_path / "c", config))
    assert compare(TrainConfig.read(job.path), job, Group()) == "succeeded", job.outcome()
    metrics = job.outcome()["metrics"]
    assert metrics["prompts"] == metrics["models"][1]["ties"] == 3
    assert "3 prompts, which show a true win rate of 100.0%" in job.progress().note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward": ""}, "either a reward model"),
        ({"steps": 0, "max_seconds": 10.0}, "counts updates"),
        ({"workers": 2}, "one worker"),
        ({"batch_size": 18}, "no multiple of 4"),
        ({"policy": {"samples": 1}}, "at least 2"),
        ({"objective": "sft", "sequence_length": LENGTH}, "is for ppo"),
        ({"sequence_length": LENGTH}, "'grpo' can't use it"),
    ],
)
def test_what_cannot_be_right_is_refused(change, words) -> None:
    job = pb.JobSpec(output_name="x", train=spec(**change))
    with pytest.raises(InvalidArgument, match=words) as caught:
        check_spec(job)
    assert (caught.value.field or "").startswith("spec.train.")


def test_a_reward_model_of_another_tokenizer_is_refused(made, tmp_path) -> None:
    dataset, start, reward = made
    other = tmp_path / "reward"
    other.mkdir()
    for path in reward.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="not the model's tokenizer"):
        plan_train(spec(), dataset, start, TrainerSettings(), other)
