"""Folders that only their owner may look into, whoever of many processes makes them first.

What a platform keeps (conversations, logs, weights, keys' hashes) lies below its data directory,
so a data directory that is closed closes all of it. Knows nothing of what lies where.
"""

from __future__ import annotations

from pathlib import Path


def make_private(folder: Path) -> Path:
    """mkdir -p in which every folder that is made, parents too, has mode 0700 (`Path.mkdir` gives
    its mode to the last one alone). What is there keeps its mode: that was somebody's choice."""
    missing = []
    at = folder
    while not at.exists():
        missing.append(at)
        at = at.parent
    for new in reversed(missing):
        new.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)  # raises FileExistsError where it is a file
    return folder
