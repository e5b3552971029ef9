"""One training worker: joins its group, then runs the loop.

Started by Ray Train (`ray_worker`) or as a plain process (`python -m plinth.trainer.worker`). All
that a worker needs lies in the job's folder, so a restarted one goes on where its group was.
Sockets are bound to the address that this node has in its cluster: loopback on a laptop.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from plinth.shared import tracing
from plinth.shared.errors import Aborted
from plinth.trainer.loop import Group, TrainConfig, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.machine import run_in_background
from plinth.trainer.policy.compare import compare
from plinth.trainer.policy.run import optimise_policy

_GROUP_TIMEOUT = timedelta(seconds=120)
_LOCK_WAIT_S = 60.0
_PR_SET_PDEATHSIG = 1


def run_worker(folder: Path, rank: int, store: Store | None, device: str) -> str:
    """Run the job in `folder` as worker `rank`; returns the outcome's status.

    `store` is where the workers meet; one worker needs none.
    """
    job, config = JobFolder(folder), TrainConfig.read(folder)
    if (trace := folder / "trace").exists():
        tracing.inherit(trace.read_text())
    if device != "cpu":
        torch.cuda.set_device(device)  # NCCL works on the current one
    if config.background and config.device == "cpu":
        run_in_background()
    with _only_group(folder, rank), _joined(rank, config.workers, store, device):
        try:
            run = compare if config.candidates else optimise_policy if config.policy else train
            return run(config, job, Group(rank, config.workers, device))
        except RuntimeError:
            # A peer that ended with a recorded outcome closes its connections; that is no crash.
            if (ended := job.outcome()) is not None:
                return str(ended["status"])
            raise


@contextmanager
def _joined(rank: int, world: int, store: Store | None, device: str) -> Iterator[None]:
    if world == 1:
        yield
        return
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=_GROUP_TIMEOUT
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _only_group(folder: Path, rank: int) -> Iterator[None]:
    """One group at a time in a folder: the first worker holds its lock."""
    if rank != 0:
        yield
        return
    with (folder / "lock").open("w") as file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise Aborted(f"another group of workers still runs in {folder}")
            time.sleep(0.1)
        yield


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bind_gloo(address: str) -> None:
    """Gloo takes the host name's address unless told; on a laptop that is not loopback."""
    if address.startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"


def ray_worker(settings: dict[str, Any]) -> None:
    """The train function of a Ray Train worker group."""
    # Ray Train is there where this runs, and only there.
    import ray.train  # noqa: PLC0415
    import ray.util  # noqa: PLC0415
    from ray.train.collective import broadcast_from_rank_zero  # noqa: PLC0415

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    address = str(ray.util.get_node_ip_address())
    _bind_gloo(address)
    store = None
    if world > 1:
        listener = socket.create_server((address, 0)) if rank == 0 else None
        place = None if listener is None else (address, listener.getsockname()[1])
        host, port = broadcast_from_rank_zero(place)
        store = TCPStore(
            host,
            port,
            world,
            is_master=rank == 0,
            timeout=_GROUP_TIMEOUT,
            master_listen_fd=None if listener is None else listener.detach(),
        )
    device = settings["device"]
    if device != "cpu":
        from ray.train.torch import get_device  # noqa: PLC0415 - which GPU is this worker's

        device = str(get_device())
    run_worker(Path(settings["folder"]), rank, store, device)


def main() -> None:
    """A plain process: `--meet` names a fresh file where the workers find one another."""
    parser = argparse.ArgumentParser(prog="plinth.trainer.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--meet", type=Path)
    arguments = parser.parse_args()
    # Nobody restarts or stops an orphan, so it ends with whoever started it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    config = TrainConfig.read(arguments.folder)
    _bind_gloo("127.0.0.1")
    store = None
    if config.workers > 1:
        store = FileStore(str(arguments.meet), config.workers)
    device = config.device if config.device == "cpu" else f"{config.device}:{arguments.rank}"
    run_worker(arguments.folder, arguments.rank, store, device)


if __name__ == "__main__":
    main()
