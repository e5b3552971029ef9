"""Starts the workers of a job and starts them again when one dies.

Two launchers, one contract: block until the job's folder holds an outcome. `RayLauncher` runs a
Ray Train worker group (Ray is initialised in the calling process); `ProcessLauncher` runs plain
processes on this machine. Workers go on from the last checkpoint, so a restart loses seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from plinth.shared.errors import Internal
from plinth.shared.telemetry import get_logger
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.job_folder import ATTEMPT, JobFolder
from plinth.trainer.worker import ray_worker

# Restarts of one group, for a machine that loses workers often; a job whose workers die without
# getting further is given up sooner.
MAX_RESTARTS = 100
MAX_RESTARTS_IN_PLACE = 8
_POLL_S = 0.05
# Threads that wait for one another sleep. By default they spin, which gains nothing here and, on a
# machine that others use too, costs almost everything (measured: 6,800 tokens/s alone, 430 beside
# one equal process; asleep 1,200 beside one that spins).
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
_LOG_TAIL = 2000

_log = get_logger("plinth.trainer")


class Launcher(Protocol):
    """Runs the workers of a job to its outcome."""

    def run(self, folder: Path, config: TrainConfig) -> None:
        """Raises Internal when workers crash again and again without an outcome."""
        ...


class ProcessLauncher:
    """Workers as child processes; they end with the thread that started them."""

    def run(self, folder: Path, config: TrainConfig) -> None:
        job = JobFolder(folder)
        in_place, reached = 0, _reached(job)
        for _ in range(MAX_RESTARTS):
            self._group(folder, config.workers)
            if job.outcome() is not None:
                return
            in_place = in_place + 1 if _reached(job) == reached else 0
            reached = _reached(job)
            if in_place > MAX_RESTARTS_IN_PLACE:
                break
            _log.warning("training worker died, starting the group again", folder=str(folder))
        tail = (folder / "worker-0.log").read_text(errors="replace")[-_LOG_TAIL:]
        raise Internal(f"training workers crash again and again; the last words were: {tail}")

    def _group(self, folder: Path, workers: int) -> None:
        meet = folder / f".meet-{token_hex(8)}"
        processes = []
        for rank in range(workers):
            with (folder / f"worker-{rank}.log").open("wb") as log:
                command = [sys.executable, "-m", "plinth.trainer.worker", str(folder)]
                command += ["--rank", str(rank), "--meet", str(meet)]
                environment = {**os.environ, **WORKER_ENVIRONMENT}
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        try:
            self._wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            meet.unlink(missing_ok=True)

    def _wait(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Until all are done, or one failed: the others would wait for it in vain."""
        while any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0) for process in processes):
                return
            try:
                next(p for p in processes if p.poll() is None).wait(_POLL_S)
            except (subprocess.TimeoutExpired, StopIteration):
                continue


class RayLauncher:
    """Workers as a Ray Train group, placed by Ray wherever the cluster has room.

    Ray Train takes some 12 s to send a group home whose work is done (measured with 2.60); nobody
    waits for that: once the folder holds an outcome, it goes on by itself.
    """

    def __init__(self, worker_cpus: float, worker_resource: str = "") -> None:
        """`worker_resource`: a custom resource that each worker takes one of; empty: none."""
        self._resources: dict[str, float] = {"CPU": worker_cpus}
        if worker_resource:
            self._resources[worker_resource] = 1.0

    def run(self, folder: Path, config: TrainConfig) -> None:
        job = JobFolder(folder)
        failure: list[Exception] = []

        def fit() -> None:
            try:
                self._fit(folder, config)
            except Exception as error:  # noqa: BLE001 - told below, unless the work was done
                failure.append(error)

        group = threading.Thread(target=fit, name="ray-train", daemon=True)
        group.start()
        while group.is_alive() and job.outcome() is None:
            group.join(_POLL_S)
        if job.outcome() is not None:
            return
        if failure:
            raise failure[0]
        raise Internal(f"the training workers ended without an outcome in {folder}")

    def _fit(self, folder: Path, config: TrainConfig) -> None:
        # The other launcher must work where Ray is not installed.
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
        from ray.train.v2.api.data_parallel_trainer import (  # noqa: PLC0415
            DataParallelTrainer,
        )
        from ray.train.v2.api.exceptions import TrainingFailedError  # noqa: PLC0415

        # Beside the jobs' folders, which go when their work is done.
        attempt = folder.name.startswith(ATTEMPT)
        storage = (folder.parent if attempt else folder).parent / f".ray-{token_hex(8)}"
        gpu = config.device.startswith("cuda")
        trainer = DataParallelTrainer(
            ray_worker,
            train_loop_config={"folder": str(folder), "device": config.device},
            scaling_config=ScalingConfig(
                num_workers=config.workers,
                use_gpu=gpu,
                resources_per_worker={**self._resources, **({"GPU": 1} if gpu else {})},
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=MAX_RESTARTS_IN_PLACE),
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as failed:
            raise Internal(f"training workers crash again and again: {failed}"[:_LOG_TAIL]) from (
                failed
            )
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _reached(job: JobFolder) -> str:
    found = checkpoints(job.checkpoints)
    return found[-1].name if found else ""
