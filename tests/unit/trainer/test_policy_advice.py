"""What an error of a policy's training advises is done here, and helps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_policy import CONFIG, Trial

import policy_job
import trainings
from plinth.models.decoder import Decoder
from plinth.models.families import new_config
from plinth.models.reward import RewardModel, save_reward_model
from plinth.models.weights import save_decoder
from plinth.shared.errors import FailedPrecondition, InvalidArgument
from plinth.trainer.data.shards import Split
from plinth.trainer.loop import Group
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.policy.job import PolicyJob


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(dataset of pairs, model to start from, reward model)."""
    folder = tmp_path_factory.mktemp("policy")
    dataset = trainings.dataset(folder / "d", trainings.pairs(40))
    vocabulary = Split(dataset, "train").info.vocab_size
    shape = {**trainings.MODEL, "context": policy_job.LENGTH, "vocab_size": vocabulary}
    decoder = Decoder(new_config(**shape))
    decoder.init_weights(3)
    save_decoder(decoder, folder / "start")
    save_reward_model(RewardModel.of(decoder, 1), folder / "judge")
    return dataset, folder / "start", folder / "judge"


def opened(made: tuple[Path, Path, Path], folder: Path, **changes: Any) -> None:
    config = policy_job.planned(*made, **changes)
    folder.mkdir()
    PolicyJob.open(config, JobFolder(folder), Group()).close()


@pytest.mark.parametrize(
    ("wrong", "ways"),
    [
        ({"batch_size": 400}, {"batch_size"}),  # more than there are at any length
        ({"policy": {"max_new_tokens": 63}}, {"max_new_tokens"}),  # no prompt fits
        ({"policy": {"max_new_tokens": "some"}}, {"batch_size", "max_new_tokens"}),
    ],
)
def test_too_few_prompts(
    made: tuple[Path, Path, Path], tmp_path: Path, wrong: dict[str, Any], ways: set[str]
) -> None:
    if wrong.get("policy") == {"max_new_tokens": "some"}:
        ids = [Split(made[0], "train").document(n) for n in range(0, 60, 2)]
        shortest = min(int(mask.nonzero()[0][0]) for _, mask in ids)
        wrong = {"batch_size": 80, "policy": {"max_new_tokens": policy_job.LENGTH - shortest}}
    with pytest.raises(InvalidArgument, match="fewer than one batch") as caught:
        opened(made, tmp_path / "a", **wrong)
    found = re.findall(r"make (\w+) at most (\d+)", caught.value.message)
    assert {name for name, _ in found} == ways, caught.value.message
    for name, most in found:
        for more, field in enumerate((int(most), int(most) + (4 if name == "batch_size" else 1))):
            right = {name: field} if name == "batch_size" else {"policy": {name: field}}
            given = {**wrong, **right}
            if more:  # what is advised is the most
                with pytest.raises(InvalidArgument):
                    opened(made, tmp_path / f"{name}-more", **given)
            else:
                opened(made, tmp_path / name, **given)


@pytest.mark.parametrize("way", ["PLINTH_REDIS_URL", "local"])
def test_shards_without_redis(
    made: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    redis_server: str,
    way: str,
) -> None:
    monkeypatch.delenv("PLINTH_REDIS_URL", raising=False)
    monkeypatch.setenv("PLINTH_DATA_DIR", str(tmp_path))
    policy = {"rollouts": "shards"}
    with pytest.raises(FailedPrecondition, match=r"set PLINTH_REDIS_URL, or .*'local'"):
        opened(made, tmp_path / "a", policy=policy)
    if way == "local":
        policy = {"rollouts": "local"}
    else:
        monkeypatch.setenv(way, redis_server)
    opened(made, tmp_path / "b", policy=policy)


@pytest.mark.parametrize(
    ("wrong", "advice", "better"),
    [
        (
            {"kl_explosion": 2.0, "kl_coefficient": 1e-9},
            r"raise kl_coefficient \(now 1e-09\)",
            {"kl_coefficient": 2.0},
        ),
        (
            {"kl_explosion": 2.0, "kl_coefficient": 1e-9},
            r"or lower the learning rate \(now 0\.01\)",
            {"learning_rate": 1e-4},
        ),
        (
            {"max_update_kl": 1e-3},
            r"lower the learning rate \(now 0\.01\)",
            {"learning_rate": 1e-4},
        ),
        (
            {"learning_rate": 1e30, "minibatches": 2, "stop_kl": 0.0, "max_update_kl": 0.0},
            r"not a number.*Lower the learning rate \(now 1e\+30\)",
            {"learning_rate": 1e-3},
        ),
    ],
)
def test_a_policy_that_runs_away(
    wrong: dict[str, Any], advice: str, better: dict[str, float]
) -> None:
    with pytest.raises(FailedPrecondition, match=advice):
        Trial(replace(CONFIG, **wrong)).run()
    assert len(Trial(replace(CONFIG, **{**wrong, **better})).run()) == CONFIG.updates
