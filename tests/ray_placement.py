"""Runs a job under Ray Train on loopback and prints the least of each resource that was left free.

python tests/ray_placement.py JOB_FOLDER RESOURCE: what each worker takes one of; empty: none.
"""

import json
import sys
import threading
from pathlib import Path

import ray

from plinth.trainer.launch import RayLauncher
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.job_folder import JobFolder

WORKERS_RESOURCE, CPUS = "plinth/train-worker", 4.0


def main() -> None:
    folder, resource = Path(sys.argv[1]), sys.argv[2]
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=CPUS,
        resources={WORKERS_RESOURCE: 3.0},
        logging_level="warning",
        log_to_driver=False,
    )
    least = dict.fromkeys(("CPU", WORKERS_RESOURCE), float("inf"))
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            # Nothing is told before the node has registered; what is all taken is left out too, but
            # there is always some of each.
            for name, free in ray.available_resources().items():
                if name in least:
                    least[name] = min(least[name], free)

    watcher = threading.Thread(target=watch)
    watcher.start()
    RayLauncher(0.5, resource).run(folder, TrainConfig.read(folder))
    done.set()
    watcher.join()
    print(json.dumps({"least": least, "outcome": JobFolder(folder).outcome()}))
    ray.shutdown()


if __name__ == "__main__":
    main()
