"""Where artifacts and records lie: a URL with one thing asked of it, create-exclusive.

Two operations carry everything above. `create` writes one small file that did not exist, whole
or not at all, and of two rivals exactly one succeeds: versions, alias moves and desired state
are such files, and fencing is checked by them. `new_tree` writes many files that nobody sees
before `commit`. A backend that can't do the first is refused at construction.

Paths are relative to the root, with "/" between parts.
"""

from __future__ import annotations

import errno
import secrets
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


def open_storage(url: str) -> Storage:
    """The storage at `url`, probed: FailedPrecondition when it can't create exclusively."""
    protocol, separator, _ = url.partition("://")
    if not separator:
        raise InvalidArgument(
            f"store URL {url!r} has no protocol: use file:///path, s3://bucket/path or gs://…",
            field="store_url",
        )
    if protocol not in ("file", "local", "s3", "gs"):
        raise FailedPrecondition(
            f"the store {protocol}:// can't create a file exclusively, so two writers could "
            "overwrite each other: use one of file, s3, gs",
            reason="STORE_NOT_EXCLUSIVE",
            field="store_url",
        )
    storage = _local(url) if protocol in ("file", "local") else _in_a_bucket(url)
    _probe(storage)
    return storage


# (both extend this module, and a bucket's client is a package of an extra)


def _local(url: str) -> Storage:
    from plinth.shared.local_storage import LocalStorage  # noqa: PLC0415

    return LocalStorage(url)


def _in_a_bucket(url: str) -> Storage:
    try:
        from plinth.shared.object_storage import ObjectStorage  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "obstore":
            raise
        raise FailedPrecondition(
            "a store in a bucket needs a package that is not installed: "
            "pip install 'plinth-llm[object-stores]'",
            reason="STORE_PACKAGE_MISSING",
            field="store_url",
        ) from error
    return ObjectStorage(url)


def _probe(storage: Storage) -> None:
    """Creates one file twice; the second time must be refused. Leaves nothing behind."""
    folder = f".probe-{secrets.token_hex(8)}"
    first = storage.create(f"{folder}/once", b"1")
    try:
        second = storage.create(f"{folder}/once", b"2")
    finally:
        storage.remove_tree(folder)
    if not first or second:
        raise FailedPrecondition(
            f"the store {storage.url} let one file be created twice: it has no conditional "
            f"create, and two writers could overwrite each other; {EXCLUSIVE}",
            reason="STORE_NOT_EXCLUSIVE",
            field="store_url",
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
