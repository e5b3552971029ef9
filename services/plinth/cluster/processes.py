"""Finding and ending the processes of a stack, and nobody else's.

A process belongs to a stack when the marker variable in its environment names it. Some of Ray's
agents overwrite their environment when they set their title, so a process whose environment can't
be read any more belongs as well if it lives in a session that the stack recorded as its own.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import psutil

from plinth.cluster.layout import MARKER


@dataclass(frozen=True)
class Identity:
    """A process and when it was made, since process ids come again."""

    pid: int
    created: float

    @classmethod
    def of_child(cls, process: subprocess.Popen[bytes]) -> Identity:
        """Of a process that we started and have not reaped, ended or not: its id is its own."""
        try:
            return cls.of(process.pid)
        except (psutil.Error, OSError):  # it ended at once, or no descriptor is left to ask with
            return cls(process.pid, time.time())

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Raises what psutil raises when there is no such process."""
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """Whether it runs. Raises nothing: a process may end, or be closed to us, between any two
        questions; of one that exists and tells nothing, it is taken that it runs."""
        try:
            process = self.process()
            return process is not None and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except (psutil.Error, OSError):
            return True

    def process(self) -> psutil.Process | None:
        """The process, or None when it is gone (or its id belongs to another by now)."""
        try:
            process = psutil.Process(self.pid)
            return process if abs(process.create_time() - self.created) < 1.0 else None
        except psutil.NoSuchProcess:
            return None


def of_stack(stack_id: str, sessions: Collection[int] = ()) -> list[psutil.Process]:
    """Living processes of the stack, without the caller and its ancestors."""
    own = {os.getpid(), *_ancestors()}
    found = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
            marked = environment.get(MARKER) == stack_id
            overwritten = not environment and os.getsid(process.pid) in sessions
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
        if marked or overwritten:
            found.append(process)
    return found


def end(processes: Iterable[psutil.Process], *, grace_s: float) -> int:
    """TERM, then KILL what is there after `grace_s` seconds. Returns how many had to end."""
    living = list(processes)
    for process in living:
        _signal(process, hard=False)
    _, stubborn = psutil.wait_procs(living, timeout=grace_s)
    for process in stubborn:
        _signal(process, hard=True)
    psutil.wait_procs(stubborn, timeout=5.0)
    return len(living)


def _ancestors() -> list[int]:
    """Ids of the processes above this one, as far as they can be seen."""
    found, pid = [], os.getppid()
    try:
        while pid:
            found.append(pid)
            pid = psutil.Process(pid).ppid()
    except (psutil.Error, OSError):
        pass  # it ended while we looked: what is above it is not known
    return found


def end_stack(
    stack_id: str, sessions: Collection[int] = (), *, grace_s: float = 0.0, timeout_s: float = 10.0
) -> int:
    """Ends every process of the stack; looks again until none is left. Returns how many."""
    ended = 0
    deadline = time.monotonic() + timeout_s
    while (found := of_stack(stack_id, sessions)) and time.monotonic() < deadline:
        ended += end(found, grace_s=grace_s)
        grace_s = 0.0
    return ended


def _signal(process: psutil.Process, *, hard: bool) -> None:
    try:
        if hard:
            process.kill()
        else:
            process.terminate()
    except (psutil.Error, OSError):
        return  # gone, or not ours to end: others are still to be
