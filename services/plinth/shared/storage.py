"""Where artifacts and records lie: a URL with one thing asked of it, create-exclusive.

Two operations carry everything above. `create` writes one small file that did not exist, whole
or not at all, and of two rivals exactly one succeeds: versions, alias moves and desired state
are such files, and fencing is checked by them. `new_tree` writes many files that nobody sees
before `commit`. A backend that can't do the first is refused at construction.

Paths are relative to the root, with "/" between parts.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)


class Tree(Protocol):
    """Files that become visible together, or never."""

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        """Writes one file below the tree's root."""

    def commit(self) -> None:
        """Makes the files visible at the tree's path. The claim on them ends with the block."""


class Storage(ABC):
    """One root on one backend. Safe to share between threads and processes."""

    url: str

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Writes a file that isn't there, atomically and durably; False: it was there."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A small file's content. FileNotFoundError."""

    @abstractmethod
    def open(self, path: str) -> IO[bytes]:
        """A file for reading in pieces. FileNotFoundError."""

    @abstractmethod
    def names(self, path: str) -> list[str]:
        """Names directly below `path`, sorted, hidden ones left out; [] where there is nothing."""

    @abstractmethod
    def new_tree(self, path: str) -> AbstractContextManager[Tree]:
        """A new directory. An exception in the block removes all of it, or, after `commit`,
        makes it `abandoned`: only who knows the records can tell whether one names it."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Removes one file; it may be gone already."""

    @abstractmethod
    def remove_tree(self, path: str) -> None:
        """Removes a directory; it may be gone already."""

    @abstractmethod
    def abandoned(self) -> Iterator[str]:
        """Paths of trees whose blocks ended by an exception or by their process's death."""

    @abstractmethod
    def local(self, path: str) -> Path | None:
        """The directory on this machine, None for a remote backend."""

    def uri(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}"


EXCLUSIVE = (
    "Amazon S3, Google Cloud Storage, MinIO and Cloudflare R2 have it; or use a volume (file://)"
)


def check_path(path: str) -> str:
    """A relative path without ways out of its root; InvalidArgument otherwise."""
    parts = path.split("/")
    bad = (
        not path
        or len(path) > 1024
        or len(parts) > 16
        or any(
            part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > 255 for part in parts
        )
        or any(ord(c) < 32 or c in "\\\x7f" or 0xD800 <= ord(c) <= 0xDFFF for c in path)
        or PurePosixPath(path).is_absolute()
    )
    if bad:
        raise InvalidArgument(
            f"{path[:200]!r} is no file name that the store takes: relative, at most 16 levels, "
            "no '..', backslash or control characters",
            field="path",
        )
    return path


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """What the operating system or a backend raises, as Plinth's errors. FileNotFoundError and
    FileExistsError pass: they are answers, and the callers above expect them."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, PlinthError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                f"the store {url} is full: {error.strerror}; nothing was published",
                reason="DISK_FULL",
            ) from error
        if isinstance(error, PermissionError):
            raise FailedPrecondition(
                f"no permission on the store {url}: {error}", reason="STORE_PERMISSION"
            ) from error
        raise Unavailable(f"the store {url} failed: {error}", reason="STORE_FAILED") from error
