"""Where artifacts and records lie: an fsspec URL with one thing asked of it, create-exclusive.

Two operations carry everything above. `create` writes one small file that did not exist, whole
or not at all, and of two rivals exactly one succeeds: versions, alias moves and desired state
are such files, and fencing is checked by them. `new_tree` writes many files that nobody sees
before `commit`. A backend that can't do the first is refused at construction.

Paths are relative to the root, with "/" between parts.
"""

from __future__ import annotations

import errno
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import fsspec

from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)

# Object stores whose fsspec implementation maps pipe_file(mode="create") to a conditional put.
CONDITIONAL = frozenset({"memory", "s3", "s3a", "gs", "gcs"})


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


def open_storage(url: str) -> Storage:
    """The storage at `url`, probed: FailedPrecondition when it can't create exclusively."""
    from plinth.shared.local_storage import LocalStorage  # noqa: PLC0415  (it extends this module)

    protocol, separator, _ = url.partition("://")
    if not separator:
        raise InvalidArgument(
            f"store URL {url!r} has no protocol: use file:///path, s3://bucket/path or gs://…",
            field="store_url",
        )
    storage: Storage
    if protocol in ("file", "local"):
        storage = LocalStorage(url)
    elif protocol in CONDITIONAL:
        storage = RemoteStorage(url)
    else:
        raise FailedPrecondition(
            f"the store {protocol}:// can't create a file exclusively, so two writers could "
            f"overwrite each other: use one of file, {', '.join(sorted(CONDITIONAL))}",
            reason="STORE_NOT_EXCLUSIVE",
            field="store_url",
        )
    _probe(storage)
    return storage


def _probe(storage: Storage) -> None:
    """Creates one file twice; the second time must be refused. Leaves nothing behind."""
    folder = f".probe-{secrets.token_hex(8)}"
    try:
        first = storage.create(f"{folder}/once", b"1")
        second = storage.create(f"{folder}/once", b"2")
    finally:
        storage.remove_tree(folder)
    if not first or second:
        raise FailedPrecondition(
            f"the store {storage.url} let one file be created twice: it has no conditional "
            "create, and two writers could overwrite each other",
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


class RemoteStorage(Storage):
    """An object store. A tree is written in place, under a name that no record knows yet.

    What a killed writer leaves there stays until somebody deletes it: object stores have no
    locks by which a dead writer could be told from a slow one.
    """

    # fsspec's memory:// checks and creates in two steps; one lock makes them one.
    _memory_lock = threading.Lock()

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._failed: list[str] = []
        self._is_memory = url.startswith("memory://")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise FailedPrecondition(
                f"the store {url} needs a package that is not installed: {error}",
                reason="STORE_PACKAGE_MISSING",
                field="store_url",
            ) from error

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{check_path(path)}"

    def create(self, path: str, data: bytes) -> bool:
        with storage_errors(self.url):
            try:
                if self._is_memory:
                    with self._memory_lock:
                        self._fs.pipe_file(self._at(path), data, mode="create")
                else:
                    self._fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return False
        return True

    def read(self, path: str) -> bytes:
        with storage_errors(self.url):
            return bytes(self._fs.cat_file(self._at(path)))

    def open(self, path: str) -> IO[bytes]:
        with storage_errors(self.url):
            if self._is_memory and not self._fs.exists(self._at(path)):
                raise FileNotFoundError(path)
            file: IO[bytes] = self._fs.open(self._at(path), "rb")
            return file

    def names(self, path: str) -> list[str]:
        with storage_errors(self.url):
            try:
                found = self._fs.ls(self._at(path), detail=False)
            except FileNotFoundError:
                return []
        names = {str(entry).rstrip("/").rpartition("/")[2] for entry in found}
        return sorted(name for name in names if name and not name.startswith("."))

    @contextmanager
    def new_tree(self, path: str) -> Iterator[Tree]:
        tree = _RemoteTree(self._fs, self._at(path), self.url)
        try:
            yield tree
        except BaseException:
            self._failed.append(path)
            raise

    def remove_tree(self, path: str) -> None:
        with storage_errors(self.url):
            if self._fs.exists(self._at(path)):
                self._fs.rm(self._at(path), recursive=True)

    def abandoned(self) -> Iterator[str]:
        while self._failed:
            yield self._failed.pop()

    def local(self, path: str) -> Path | None:
        return None


class _RemoteTree:
    def __init__(self, fs: Any, root: str, url: str) -> None:
        self._fs = fs
        self._root = root
        self._url = url

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        with (
            storage_errors(self._url),
            self._fs.open(f"{self._root}/{check_path(path)}", "wb") as f,
        ):
            for chunk in chunks:
                f.write(chunk)

    def commit(self) -> None:
        """Nothing to do: the files are there, and the record that names them follows."""
