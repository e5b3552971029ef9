"""A write that failed, as a typed error that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from plinth.shared.errors import DataLoss, PlinthError, ResourceExhausted


def is_full(failed: Exception) -> bool:
    """Whether a write failed since the disk, or the quota, is full."""
    number = getattr(failed, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(failed)


def disk_error(failed: Exception, folder: Path, what: str) -> PlinthError:
    """The typed error for a write of `what` to `folder` that failed."""
    if is_full(failed):
        return ResourceExhausted(
            f"the disk is full: cannot write a {what} to {folder}. Free some space and run it "
            "again (the same pipeline, or `plinth queue requeue trainer-jobs` and the job's id): "
            "training goes on from its last checkpoint",
            reason="DISK_FULL",
        )
    return DataLoss(f"cannot write a {what} to {folder}: {failed}")
