"""Digests of files' contents, read again only where a file may have changed.

Size and time of change are no proof: an editor or a copy may keep both. The time at which the
file's own record changed (ctime) can't be set by a program; a file that has kept it, and its
inode, has kept its content, if it was old enough when it was read (a clock's tick may hide a change
right after).
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Final

_SETTLED_NS: Final = 2_000_000_000
_KEPT: Final = 100_000
_known: dict[tuple[int, ...], str] = {}


def file_digest(path: Path) -> str:
    """ "sha256:<hex>" of the content. OSError. Safe to call from many threads."""
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        if (known := _known.get(key)) is not None:
            return known
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        unchanged = os.fstat(file.fileno()).st_ctime_ns == about.st_ctime_ns
    if unchanged and time.time_ns() - about.st_ctime_ns > _SETTLED_NS:
        if len(_known) >= _KEPT:
            _known.clear()
        _known[key] = digest
    return digest
