"""Launchers with real workers: where Ray puts them, and how a group that only crashes ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainings
from plinth.shared.errors import Internal
from plinth.trainer import launch
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.launch import ProcessLauncher
from plinth.trainer.loop.job_folder import JobFolder
from ray_placement import CPUS, WORKERS_RESOURCE

SCRIPT = Path(__file__).parents[2] / "ray_placement.py"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trainings.dataset(tmp_path_factory.mktemp("plain"), trainings.texts(100))


@pytest.mark.slow
@pytest.mark.parametrize(("resource", "left"), [("", 3.0), (WORKERS_RESOURCE, 1.0)])
def test_each_worker_takes_its_resources_while_it_runs(resource, left, plain, tmp_path):
    """Of three there are, two workers leave one; and none of it is taken where none is asked for.
    Ray itself says what was free."""
    folder = tmp_path / "jobs" / "a"
    trainings.job(folder, trainings.config(plain, workers=2, steps=20))
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), resource],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    # Not the exit status: Ray Train goes on sending its group home when Ray is shut down.
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"least"')]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(lines[-1])
    assert said["outcome"]["status"] == "succeeded", said
    assert said["least"][WORKERS_RESOURCE] == left
    assert said["least"]["CPU"] <= CPUS - 2 * 0.5


@pytest.mark.parametrize(
    ("workers", "restarts"), [(1, 0), pytest.param(2, 2, marks=pytest.mark.slow)]
)
def test_workers_that_only_crash_are_given_up_with_their_last_words(
    workers, restarts, plain, tmp_path, monkeypatch
):
    """A crash without getting further is tried again so often, and then it is told of."""
    monkeypatch.setattr(launch, "MAX_RESTARTS_IN_PLACE", restarts)
    config = trainings.config(plain, workers=workers, steps=4)
    folder = trainings.job(tmp_path / "a", config)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "of_the_future": 1}))
    with pytest.raises(Internal, match=r"crash again and again(?s:.*)of_the_future"):
        ProcessLauncher().run(folder, config)
    assert JobFolder(folder).outcome() is None
    config.write(folder)  # once what was in the way has gone, the same folder is gone on with
    ProcessLauncher().run(folder, config)
    assert JobFolder(folder).outcome()["status"] == "succeeded"
    assert checkpoints(folder / "checkpoints")[-1].name == "step-00000004"
