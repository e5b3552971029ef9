"""Checkpoints of jobs that have not ended, or ended without a result: the newest of each, so that
after a restore the job goes on, or one of the same inputs does.

They lie in the data directory (`trainer/attempts.py` says where), not on the store. Where that
directory is another machine's, there are none to be seen here, and a restored job begins again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from plinth.cluster.backup.archive import Archive, chunks_of
from plinth.shared.errors import DataLoss
from plinth.shared.private_folders import make_private
from plinth.shared.storage import check_path, storage_errors

_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_STEP = re.compile(r"step-[0-9]{8}")
_CHECKPOINTS = "checkpoints/step-????????"
# As `trainer/attempts.py` names them; no attempt of a lease has the number 0.
_RESTORED, _INPUTS, _GIVEN_UP = "attempt-0", "inputs", "given-up"
_TRIES = 3


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in an archive. `step` is its folder's name. inputs: what its attempt noted
    that the job is made from, "" if nothing. given_up: the job had ended without a result."""

    job: str
    step: str
    content: str
    inputs: str = ""
    given_up: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Checkpoint:
        job, step = str(value["job"]), str(value["step"])
        if not _JOB.fullmatch(job) or not _STEP.fullmatch(step):
            raise DataLoss(
                f"{job[:80]!r}, {step[:80]!r} names no checkpoint", reason="BACKUP_DAMAGED"
            )
        inputs, given_up = str(value.get("inputs", "")), bool(value.get("given_up"))
        return cls(job, step, str(value["content"]), inputs, given_up)


def copy_out(data_dir: Path, archive: Archive) -> tuple[list[Checkpoint], int]:
    """The newest complete checkpoint of each job; (checkpoints, bytes copied)."""
    root = data_dir.resolve() / "jobs"
    found: list[Checkpoint] = []
    copied = 0
    have = archive.contents()
    for job in sorted(root.iterdir()) if root.is_dir() else []:
        for _ in range(_TRIES):
            found_here = (*job.glob(_CHECKPOINTS), *job.glob(f"attempt-*/{_CHECKPOINTS}"))
            steps = sorted(found_here, key=lambda step: step.name)
            if not _JOB.fullmatch(job.name) or not steps:
                break
            try:
                name = _name(job.name, steps[-1])
                if name not in have:
                    copied += archive.add_content(name, _files(steps[-1]))
            except FileNotFoundError:  # newer ones took its place meanwhile
                continue
            attempt = steps[-1].parents[1]  # or the job's own folder: put back from a backup
            inputs, given_up = attempt / _INPUTS, (attempt / _GIVEN_UP).exists()
            noted = inputs.read_text() if inputs.exists() else ""
            found.append(Checkpoint(job.name, steps[-1].name, name, noted, given_up))
            break
    return found, copied


def copy_back(found: list[Checkpoint], archive: Archive, data_dir: Path) -> int:
    """Puts them where the trainer looks, as an attempt before all others; bytes copied. What is
    there already stays."""
    copied = 0
    for one in found:
        attempt = data_dir.resolve() / "jobs" / one.job
        if one.inputs:
            attempt /= _RESTORED
        folder = attempt / "checkpoints"
        final, writing = folder / one.step, folder / f".writing-{one.step}"
        if final.is_dir():
            continue
        content = archive.content(one.content)
        with storage_errors(folder.as_uri()):
            shutil.rmtree(writing, ignore_errors=True)
            make_private(writing)
            for file in content.files:
                to = writing / check_path(file)
                with to.open("xb") as out:
                    for chunk in archive.read(content, file):
                        out.write(chunk)
            if one.inputs:
                (attempt / _INPUTS).write_text(one.inputs)
            if one.given_up:
                (attempt / _GIVEN_UP).touch()
            writing.rename(final)
        copied += content.bytes
    return copied


def check(found: list[Checkpoint], archive: Archive) -> int:
    """Reads them and compares digests; bytes read."""
    size = 0
    for one in found:
        content = archive.content(one.content)
        for file in content.files:
            size += sum(len(chunk) for chunk in archive.read(content, file))
    return size


def _name(job: str, step: Path) -> str:
    state = (step / "state.json").read_bytes()
    return f"job-{sha256(f'{job}/{step.name}/'.encode() + state).hexdigest()[:32]}"


def _files(step: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    for file in sorted(step.iterdir()):
        yield file.name, chunks_of(file.open("rb"))
