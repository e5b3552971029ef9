"""Logs of a stack's components: one file each under <data>/logs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from plinth.cluster.layout import Layout
from plinth.shared.errors import NotFound

POLL_S = 0.3


def log_files(layout: Layout, component: str | None = None) -> dict[str, Path]:
    """Component → file; NotFound, naming those there are, for a component without a log."""
    files = {path.stem: path for path in sorted(layout.logs.glob("*.log"))}
    redis = layout.data_dir / "redis" / "redis.log"
    if redis.exists():
        files["redis"] = redis
    if component is None:
        return files
    if component not in files:
        known = ", ".join(files) or "none; has a stack run here?"
        raise NotFound(f"{component!r} has no log in {layout.logs}; there are: {known}")
    return {component: files[component]}


def tail(path: Path, lines: int) -> list[str]:
    """The last lines, without their ends."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=lines)]


def follow_logs(layout: Layout, component: str | None = None) -> Iterator[tuple[str, str]]:
    """(component, line) for every line written from now on; never ends by itself."""
    offsets = {name: path.stat().st_size for name, path in log_files(layout, component).items()}
    while True:
        for name, path in log_files(layout, component).items():
            size = path.stat().st_size
            offset = offsets.get(name, 0)
            if size < offset:
                offset = 0  # it was rotated
            if size > offset:
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read()
                # A line that is being written is shown when it is whole.
                whole = data[: data.rfind(b"\n") + 1]
                offset += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    yield name, line
            offsets[name] = offset
        time.sleep(POLL_S)
