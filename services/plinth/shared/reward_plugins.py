"""Rules that other distributions bring to the reward stage, as part of what a result is made from.

Plinth's own rules are covered by its versions of steps; those of the entry point group are told by
the code of their packages, as this machine has it: where the reward stage runs from another image,
that one must have the same. Nothing of them is imported here. Blocks on their files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from plinth.shared.file_digests import file_digest

ENTRY_POINTS: Final = "plinth.rewards"


def plugins() -> dict[str, str]:
    """For a step's surroundings: the digest of all of them; empty where there is none. OSError."""
    found = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value))
    if not found:
        return {}
    digest = hashlib.sha256()
    for point in found:
        version = point.dist.version if point.dist else ""
        digest.update(f"{point.name}\0{point.value}\0{version}\n".encode())
        for name, path in _sources(point):
            digest.update(f"{name}\0{file_digest(path)}\n".encode())
    return {"rules": f"sha256:{digest.hexdigest()}"}


def _sources(point: EntryPoint) -> Iterator[tuple[str, Path]]:
    """(name, path) of the Python files of the package, or of the module alone."""
    spec = find_spec(point.module.partition(".")[0])
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        root = Path(folder)
        for path in sorted(root.rglob("*.py")):
            yield path.relative_to(root).as_posix(), path
    if spec.submodule_search_locations is None and spec.origin is not None:
        yield "", Path(spec.origin)
