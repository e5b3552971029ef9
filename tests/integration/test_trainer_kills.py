"""Workers killed with -9: the final weights are the undisturbed run's, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import trainings
from killing import kill_at, processes_of
from plinth.trainer.launch import ProcessLauncher
from plinth.trainer.loop.job_folder import JobFolder

SCRIPT = Path(__file__).parent.parent / "ray_training.py"


def weights(folder):
    assert JobFolder(folder).outcome()["status"] == "succeeded", JobFolder(folder).outcome()
    return (folder / "model" / "model.safetensors").read_bytes()


def undisturbed(folder, config):
    ProcessLauncher().run(trainings.job(folder, config), config)
    return weights(folder)


def killed(folder, config, steps):
    """Under plain processes."""
    trainings.job(folder, config)
    killer = threading.Thread(target=kill_at, args=(folder, steps, lambda: processes_of(folder)))
    killer.start()
    ProcessLauncher().run(folder, config)
    killer.join()
    return weights(folder)


def killed_under_ray(folder, config, steps):
    trainings.job(folder, config)
    # Keeps Ray on loopback, as `plinth up` does.
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *map(str, steps)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return weights(folder)


def config(tmp_path, workers, steps):
    made = trainings.dataset(tmp_path / "data", trainings.texts(300))
    return trainings.config(
        made, workers=workers, steps=steps, batch_size=8, micro_batch_size=2, checkpoint_every=5
    )


def test_two_workers_one_killed(tmp_path):
    made = config(tmp_path, 2, 60)
    assert killed(tmp_path / "a", made, [10]) == undisturbed(tmp_path / "b", made)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_killed_three_times(tmp_path, workers):
    made = config(tmp_path, workers, 120)
    if workers == 3:
        from dataclasses import replace

        made = replace(made, batch_size=12)
    steps = [5, 35, 70]
    assert killed(tmp_path / "a", made, steps) == undisturbed(tmp_path / "b", made)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_three_times_under_ray_train(tmp_path, workers):
    made = config(tmp_path, workers, 400)
    steps = [5, 100, 250]
    assert killed_under_ray(tmp_path / "a", made, steps) == undisturbed(tmp_path / "b", made)
