"""Which files of a stage's machine a request may name: what lies in a folder of `source_roots`.

A key with the scope "jobs" or "runs" can name a corpus' folder or a file of prompts, and a stage
then reads it with its own rights. So such a path is compared with the roots where its links lead,
and before anything is said about whether it exists. Hidden folders of a root (~/.ssh) and the data
directory stay closed unless a root lies in them.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from plinth.shared.errors import InvalidArgument, PermissionDenied
from plinth.shared.settings_values import variable

if TYPE_CHECKING:
    from plinth.shared.settings import Settings

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # the caller says so, in its own words
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class SourceRoots:
    """The folders that are open; none, where `roots` is empty."""

    def __init__(self, roots: Iterable[Path], *, closed: Path | None = None) -> None:
        """`closed`: a folder that is not open although a root contains it."""
        self._roots = [Path(os.path.realpath(root)) for root in roots]
        self._closed = None if closed is None else Path(os.path.realpath(closed))

    @classmethod
    def of(cls, settings: Settings) -> SourceRoots:
        return cls(settings.source_roots or (), closed=settings.data_dir)

    def check(self, path: str | Path, *, field: str) -> Path:
        """`path` with its links followed. InvalidArgument unless it is an absolute path;
        PermissionDenied, whether it exists or not, unless it lies in a root. InvalidArgument also
        for what lies in one and can't be looked at: its name is too long, or it is another's."""
        text = str(path)
        if "\0" in text or not text.startswith("/"):
            kind = "relative"
            if _URL.match(text):
                kind = "a URL"
            elif "\0" in text:
                kind = "a text with NUL in it"
            raise InvalidArgument(
                f"{field}: {text[:200]!r} is no absolute path but {kind}; write /folder/file, as "
                "the stage that reads it sees it",
                reason="PATH_NOT_ABSOLUTE",
                field=field,
            )
        found = Path(os.path.realpath(text))
        if not any(self._opens(root, found) for root in self._roots):
            there = "none" if not self._roots else f"{len(self._roots)} of them"
            raise PermissionDenied(
                f"{field}: {text[:200]!r} lies in no folder that requests may read from (now "
                f"{there}). Whoever runs the platform opens folders by the setting source_roots, "
                f"or {variable('source_roots')}=/FOLDER{os.pathsep}/ANOTHER (all that are to be "
                "open), and starts it again; hidden folders in them, and the data directory, stay "
                "closed unless they are named themselves",
                reason="PATH_NOT_ALLOWED",
                metadata={"field": field},
            )
        try:
            found.stat()
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise InvalidArgument(
                    f"{field}: {text[:200]!r} can't be read: {error.strerror}",
                    reason="PATH_UNREADABLE",
                    field=field,
                ) from error
        return found

    def _opens(self, root: Path, found: Path) -> bool:
        if not found.is_relative_to(root):
            return False
        if any(part.startswith(".") for part in found.relative_to(root).parts):
            return False
        closed = self._closed
        return closed is None or not found.is_relative_to(closed) or root.is_relative_to(closed)
