"""A policy that learns from rules: the reward stage scores its answers, prompt by prompt."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import trainings
from checkpoints import byte_tokenizer, random_llama
from job_specs import policy_spec, train_spec
from plinth.reward.service import build as build_reward
from plinth.shared.errors import InvalidArgument
from plinth.shared.prompt_set import Prompt, write_prompts
from plinth.shared.settings_sections import TrainerSettings
from plinth.trainer.data.prompt_dataset import checks_of, tokenize_prompts
from plinth.trainer.data.shards import Split
from plinth.trainer.loop import Group
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.planning import plan_train
from plinth.trainer.policy.prompts import prompts_of
from plinth.trainer.policy.run import optimise_policy
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb
from plinth.v1 import rewards_pb2
from reward_stack import Stack, stack

__all__ = ["stack"]  # a fixture

# Half of the prompts want a vowel in the answer, the others want none of them.
VOWELS = [{"kind": "contains", "phrases": list("aeiou"), "which": "any"}]
NONE = [{"kind": "contains", "phrases": list("aeiou"), "which": "none"}]
PROMPTS = [Prompt(f"{n} yes", "yes", tuple(VOWELS)) for n in range(24)]
PROMPTS += [Prompt(f"{n} no", "no", tuple(NONE)) for n in range(24)]


def made(folder: Path) -> tuple[Path, Path]:
    """(dataset of prompts, model to start from), both with the byte tokenizer."""
    start = byte_tokenizer(random_llama(folder / "start", context=64))
    (folder / "prompts").mkdir()
    write_prompts([p for i, p in enumerate(PROMPTS) if i % 4], folder / "prompts" / "train.jsonl")
    write_prompts(PROMPTS[::4], folder / "prompts" / "validation.jsonl")
    encoder = Tokenizer.from_file(str(start / "tokenizer.json"))
    tokenize_prompts(
        folder / "prompts",
        start,
        folder / "dataset",
        tokenizer_ref="start@1",
        tokenizer_digest="sha256:0",
        render=lambda batch: [encoder.encode(messages[0][1]).ids for messages in batch],
    )
    return folder / "dataset", start


def spec(**changes: Any) -> pb.TrainSpec:
    fields: dict[str, Any] = {
        "objective": "grpo",
        "dataset": "d@1",
        "init_from": "start@1",
        "batch_size": 64,
        "steps": 12,
        "learning_rate": 1e-2,
        "seed": 4,
        # So few updates learn something by leaps alone.
        "policy": policy_spec(samples=8, max_new_tokens=3, kl_coefficient=0, max_update_kl=0),
        "rewards": [rewards_pb2.RewardSource(name="checks", rule={"kind": "checks"})],
        **changes,
    }
    return train_spec(**fields)


def test_checks_stand_beside_their_prompts(tmp_path: Path) -> None:
    dataset, start = made(tmp_path)
    encoder = Tokenizer.from_file(str(start / "tokenizer.json"))
    for name in ("train", "validation"):
        split = Split(dataset, name)
        assert split.info.form == "prompts"
        prompts, checks = prompts_of(split, 60), checks_of(dataset, name)
        assert len(prompts) == len(checks) == split.documents
        for ids in prompts:
            assert ("none" in checks[ids]) == encoder.decode(list(ids)).endswith("no")


async def test_rules_are_learned_and_a_stop_changes_nothing(
    stack: Stack, redis_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLINTH_REDIS_URL", redis_server)
    dataset, start = made(tmp_path)
    await asyncio.to_thread(stack.context.store.publish, "start", "model", start)
    await stack.add("reward", build_reward)
    config = plan_train(spec(), dataset, start, TrainerSettings(threads=1))

    class Interrupted(JobFolder):
        looks = 0

        def requested(self):
            self.looks += 1
            return "pause" if self.looks >= 4 else None

    ends = []
    for name, kind in (("whole", JobFolder), ("parts", Interrupted)):
        job = kind(trainings.job(tmp_path / name, config))
        status = await asyncio.to_thread(optimise_policy, config, job, Group())
        if status == "paused":
            job = JobFolder(job.path)
            job.begin()
            status = await asyncio.to_thread(optimise_policy, config, job, Group())
        assert status == "succeeded", job.outcome()
        ends.append((job.outcome()["metrics"], load_file(job.model / "model.safetensors")))
    (metrics, whole), (_, parts) = ends
    assert metrics["validation_reward"] > metrics["validation_reward_before"] + 0.1
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards": []}, "either a reward model"),
        ({"reward": "judge@1"}, "either a reward model"),
        ({"objective": "sft", "policy": None, "sequence_length": 64}, "rewards"),
    ],
)
def test_a_policy_has_one_kind_of_judge(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        check_spec(pb.JobSpec(output_name="x", train=spec(**change)))
