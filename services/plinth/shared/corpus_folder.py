"""Which files a corpus folder has: what the trainer reads, and what tells a changed folder.

Hidden files and folders (`.git`) are no part of a corpus. Links are followed, to folders too, each
folder once, so that a link to one further up ends nowhere.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".py")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl")
_NAMED = 8  # kinds of file that are named in what was left out


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, in small letters, without `.gz`."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix == ".gz" else suffix


class CorpusFolder:
    """The files below `root`, in the order of their paths."""

    def __init__(self, root: Path, check: Callable[[Path], object] = lambda _: None) -> None:
        """Looks at once. `check` is told each link that leads to a folder; what it raises is
        raised."""
        self.files: list[Path] = []
        self.others: Counter[str] = Counter()  # why → how many are not read
        self._check = check
        self._seen = {root.resolve()}
        kinds: Counter[str] = Counter()
        for path in self._below(root):
            if kind_of(path) in SUFFIXES:
                self.files.append(path)
            else:
                kinds[_printable(path.suffix or path.name)] += 1
        named = kinds.most_common(_NAMED)
        self.others.update({f"of kind {kind}": count for kind, count in named})
        if more := kinds.total() - sum(count for _, count in named):
            self.others["of other kinds"] = more

    def _below(self, folder: Path) -> Iterator[Path]:
        try:
            entries = [
                (path, path.is_dir(), path.is_file())
                for path in sorted(folder.iterdir())
                if not path.name.startswith(".")
            ]
        except OSError:
            self.others["in a folder that can't be opened"] += 1
            return
        for path, is_folder, is_file in entries:
            if is_folder:
                if path.is_symlink():
                    self._check(path)
                real = path.resolve()
                if real not in self._seen:
                    self._seen.add(real)
                    yield from self._below(path)
            elif is_file:
                yield path
            else:
                self.others["a broken link, or no plain file"] += 1


def _printable(name: str) -> str:
    """A name that is not UTF-8, as text."""
    return os.fsencode(name).decode("utf-8", "replace")[:40]
