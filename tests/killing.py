"""Kills training workers with -9 as their run passes given steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from plinth.trainer.loop.job_folder import JobFolder


def reached(folder: Path) -> int:
    """The last checkpointed step, -1 before the first."""
    names = [p.name for p in (folder / "checkpoints").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def kill_at(folder: Path, steps: list[int], workers: Callable[[], list[psutil.Process]]) -> None:
    """Returns once all kills are done; fails when the run ends before."""
    for count, step in enumerate(steps):
        while True:
            assert JobFolder(folder).outcome() is None, "the run ended before it was killed"
            try:
                if reached(folder) >= step and (found := workers()):
                    found[count % len(found)].kill()
                    break
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.01)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Workers that a ProcessLauncher of this process started for `folder`."""
    return [process for process in psutil.Process().children() if str(folder) in process.cmdline()]
