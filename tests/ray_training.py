"""Runs a job under Ray Train on loopback, killing its workers on the way; prints the outcome.

python tests/ray_training.py JOB_FOLDER [STEP...]: a worker dies once each step was checkpointed.
"""

import sys
import threading
from pathlib import Path

import psutil
import ray

from killing import kill_at
from plinth.trainer.launch import RayLauncher
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.job_folder import JobFolder


def ray_workers() -> list[psutil.Process]:
    """Training workers of this script's own Ray, whichever other Rays run on the machine."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]


def main() -> None:
    folder, steps = Path(sys.argv[1]), [int(step) for step in sys.argv[2:]]
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=8,
        logging_level="warning",
        log_to_driver=False,
    )
    killer = threading.Thread(target=kill_at, args=(folder, steps, ray_workers))
    killer.start()
    RayLauncher(0.1).run(folder, TrainConfig.read(folder))
    killer.join()
    print(JobFolder(folder).outcome())
    ray.shutdown()


if __name__ == "__main__":
    main()
