"""Groups of real worker processes that meet over gloo on loopback."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from patience import PATIENCE_S

# One server imports torch; each worker is forked from it, which takes no time.
_PRELOADED = ["torch.distributed", "trainings", "plinth.trainer.loop.train", "worker_groups"]


def run_group(
    world: int,
    folder: Path,
    work: Callable[..., None],
    *args: Any,
    timeout_s: float = PATIENCE_S,
) -> None:
    """`work(rank, world, *args)` in each of `world` processes; raises what one of them raised.

    timeout_s: how long a sum may wait for the others.
    """
    multiprocessing.set_forkserver_preload(_PRELOADED)
    folder.mkdir(parents=True, exist_ok=True)
    mp.start_processes(
        _joined,
        (world, str(folder / "meet"), work, args, timeout_s),
        nprocs=world,
        start_method="forkserver",
    )


def _joined(
    rank: int,
    world: int,
    meet: str,
    work: Callable[..., None],
    args: tuple[Any, ...],
    timeout_s: float,
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(meet, world)
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        work(rank, world, *args)
    finally:
        dist.destroy_process_group()
