"""A write that failed, as a typed error that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from plinth.shared.errors import DataLoss, PlinthError, ResourceExhausted

_STEPS = "step-????????"


def is_full(failed: Exception) -> bool:
    """Whether a write failed since the disk, or the quota, is full."""
    number = getattr(failed, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(failed)


def _goes_on(folder: Path) -> str:
    """By the checkpoints in a job's folder, or in the folder that holds them."""
    steps = [int(p.name[5:]) for p in (*folder.glob(_STEPS), *folder.glob(f"checkpoints/{_STEPS}"))]
    step = max(steps, default=0)
    return f"goes on from its last checkpoint, step {step}" if step else "begins at its first step"


def disk_error(failed: Exception, folder: Path, what: str) -> PlinthError:
    """The typed error for a write of `what` to `folder` that failed."""
    if is_full(failed):
        return ResourceExhausted(
            f"the disk is full: cannot write a {what} to {folder}. Free some space and run it "
            "again (the same pipeline, or `plinth queue requeue trainer-jobs` and the job's id): "
            f"it {_goes_on(folder)}",
            reason="DISK_FULL",
        )
    return DataLoss(f"cannot write a {what} to {folder}: {failed}")
