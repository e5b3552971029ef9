"""A folder for others that appears at once and whole, or not at all.

Knows nothing of models, but that one may replace another.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from plinth.shared.errors import AlreadyExists, FailedPrecondition, ResourceExhausted

# What tells a model's folder from any other that a mistaken path may name.
_MARKS = ("config.json", "adapter_config.json")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def check_target(out: Path, *, force: bool) -> None:
    """Raise AlreadyExists where `out` holds something and is not to be replaced, and
    FailedPrecondition where it is, and is no model's folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise AlreadyExists(
            f"{out}: exists and is not empty; choose another folder, or replace it with --force"
        )
    files = out.is_dir() and all(p.is_file() or p.name == "base" for p in out.iterdir())
    if not files or not any((out / mark).is_file() for mark in _MARKS):
        raise FailedPrecondition(
            f"{out}: is no model's folder ({' or '.join(_MARKS)}, and files only), so --force does "
            "not replace it; move it away yourself"
        )


def check_space(out: Path, needed: int) -> None:
    """Raise ResourceExhausted where the disk of `out` has fewer than `needed` bytes free."""
    there = out
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ResourceExhausted(
            f"{out}: needs {human(needed)}, and {human(free)} are free on its disk; free "
            f"{human(needed - free)} more, or choose a folder on another disk",
            reason="DISK_FULL",
        )


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, to be filled; it takes the place of `out` at the end, and is gone
    after an error. Raises ResourceExhausted for a disk that became full meanwhile."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
        made = Path(staging) / "made"
        made.mkdir()  # with the mode that the user's umask gives
        try:
            yield made
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
                raise ResourceExhausted(
                    f"{out}: the disk became full; nothing of it is left", reason="DISK_FULL"
                ) from error
            raise
        _readable(made)
        before = Path(staging) / "before"
        if out.exists():
            out.rename(before)
        try:
            made.rename(out)
        except OSError:
            if before.exists():
                before.rename(out)
            raise


def _readable(made: Path) -> None:
    """The modes that the user's umask gives, which the folder has; safetensors writes for its owner
    alone."""
    mode = made.stat().st_mode & 0o666
    for path in made.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def human(size: int) -> str:
    """ "2.4 GB", as disks are sold."""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
