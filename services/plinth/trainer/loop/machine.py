"""What is decided by measuring the machine at the start of a run, and then kept."""

from __future__ import annotations

import os
import time

import torch

# bf16 must win clearly: short measurements are noisy, and its rounding is not free.
_CLEARLY_FASTER = 1.5
_REPEATS = 9


def choose_precision(wanted: str, device: str, rows: int, width: int) -> str:
    """ "fp32" or "bf16": as wanted, or by a matmul of the run's own size where it is "auto"."""
    if wanted != "auto":
        return wanted
    fp32, bf16 = (
        _matmul_seconds(kind, device, rows, width) for kind in (torch.float32, torch.bfloat16)
    )
    return "bf16" if fp32 > _CLEARLY_FASTER * bf16 else "fp32"


def _matmul_seconds(dtype: torch.dtype, device: str, rows: int, width: int) -> float:
    a = torch.ones(min(rows, 4096), width, dtype=dtype, device=device)
    b = torch.ones(width, 4 * width, dtype=dtype, device=device)
    torch.mm(a, b)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)  # what else runs on the machine only adds


def choose_threads(wanted: int, workers: int) -> int:
    """Threads for one worker: as wanted, or an even share of the cores that it may use."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // workers)


def run_in_background() -> None:
    """Let everybody else on the machine go first; holds for threads made from here on."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
