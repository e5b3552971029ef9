"""Where an attempt at a job works: in a folder of its own, named by the fence of its lease.

    <data directory>/jobs/<job>/attempt-17/    see `trainer.loop.job_folder`
                                inputs         digest of what the job is made from
                                given-up       the job has ended; its checkpoints are for others

Several may be at work on one job, on a folder that machines share: a consumer that lost its lease
learns it late. So each writes and removes only its own, and what is of use to the next one moves by
renaming: an attempt goes on from the newest checkpoint of those before it, else of a job that ended
without a result and had the same inputs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from plinth.shared.private_folders import make_private
from plinth.shared.telemetry import get_logger
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.job_folder import ATTEMPT, JobFolder

# What an attempt leaves to the next one beside its checkpoints, which go last.
_LEFT = ("reference.safetensors", "progress.json", "checkpoints")
_INPUTS, _GIVEN_UP = "inputs", "given-up"
_NUMBERED = re.compile(re.escape(ATTEMPT) + r"([0-9]+)")

_log = get_logger("plinth.trainer")


class Attempt:
    """One attempt at one job. `folder` is its own."""

    def __init__(self, jobs: Path, job_id: str, fence: int) -> None:
        self._jobs, self._job, self._fence = jobs, jobs / job_id, fence
        self.folder = JobFolder(self._job / f"{ATTEMPT}{fence}")

    def begin(self) -> None:
        """Makes the folder, and asks earlier attempts whose workers may still run to stop."""
        make_private(self.folder.path)
        self.folder.begin()
        for _, before in self._earlier():
            with suppress(FileNotFoundError):  # it goes at this very moment
                JobFolder(before).request("pause")

    def take_over(self, inputs: str, config: TrainConfig) -> None:
        """Goes on from the newest checkpoint that there is for these inputs (a digest) and this
        configuration. One that an earlier version of the code made with what it understood of the
        job is left alone: the job begins again."""
        (self.folder.path / _INPUTS).write_text(inputs)
        if checkpoints(self.folder.checkpoints):
            return
        found = [(_newest(place), place) for place in self._places(inputs, config.digest())]
        for step, place in sorted(found, reverse=True):
            if step and self._move(place):
                return

    def leave(self, *, finished: bool) -> None:
        """Removes what nobody needs any more of this attempt and those before it: all when the job
        is done, else what has no checkpoint. A later attempt's folder stays."""
        for path in (self.folder.path, *(before for _, before in self._earlier())):
            if finished or not checkpoints(path / "checkpoints"):
                shutil.rmtree(path, ignore_errors=True)
        if finished:  # put back from a backup
            shutil.rmtree(self._job / "checkpoints", ignore_errors=True)
        with suppress(OSError):  # others are at work in it
            self._job.rmdir()

    def give_up(self) -> None:
        """The job has ended without a result: a job of the same inputs may have what it left.

        Where that can't be noted (nothing was left, the disk is full), it stays nobody's.
        """
        with suppress(OSError):
            (self.folder.path / _GIVEN_UP).touch()

    def _earlier(self) -> list[tuple[int, Path]]:
        """This job's attempts under older fences."""
        return [(number, path) for number, path in _attempts(self._job) if number < self._fence]

    def _places(self, inputs: str, config_digest: str) -> Iterator[Path]:
        own = [path for _, path in self._earlier() if _read(path / _INPUTS) in ("", inputs)]
        for path in (self._job, *own):  # the first: put back from a backup
            made_with = _made_with(path)
            if made_with in ("", config_digest):
                yield path
            else:
                _log.warning(
                    "a checkpoint was made with another configuration: the job begins again",
                    job=self._job.name,
                    checkpoint=_newest(path),
                )
        for job in self._jobs.iterdir():
            for _, path in _attempts(job):
                given_up = (path / _GIVEN_UP).exists() and _read(path / _INPUTS) == inputs
                if given_up and _made_with(path) == config_digest:
                    yield path

    def _move(self, place: Path) -> bool:
        """False where another attempt was faster."""
        try:
            for name in _LEFT:
                if (place / name).exists():
                    (place / name).rename(self.folder.path / name)
        except FileNotFoundError:
            return False
        if (place / _GIVEN_UP).exists():
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):
                place.parent.rmdir()
        return True


def _attempts(job: Path) -> list[tuple[int, Path]]:
    try:
        found = [(_NUMBERED.fullmatch(path.name), path) for path in job.iterdir()]
    except (FileNotFoundError, NotADirectoryError):  # another's, and gone
        return []
    return [(int(match[1]), path) for match, path in found if match]


def _newest(place: Path) -> str:
    """The name of the newest checkpoint; empty where there is none."""
    found = checkpoints(place / "checkpoints")
    return found[-1].name if found else ""


def _made_with(place: Path) -> str:
    """The digest of the configuration that made its newest checkpoint; empty if that is damaged."""
    try:
        state = json.loads((place / "checkpoints" / _newest(place) / "state.json").read_text())
        return str(state["config_digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
