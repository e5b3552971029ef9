"""The store on a file system (file://): exclusive by hard link, atomic by rename.

A record is written under a hidden name, brought to the disk, and linked to its true name: the
link fails when that exists, and a reader sees a whole record or none. A tree is staged under
`.staging/<id>` beside a lock file `.staging/<id>.lock` that its writer holds (flock) until the
record that names the tree exists. A lock that can be taken belongs to a dead writer, and what it
staged or committed without a record is swept.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from plinth.shared.errors import DataLoss, FailedPrecondition, InvalidArgument
from plinth.shared.private_folders import make_private
from plinth.shared.storage import Storage, Tree, check_path, storage_errors

_STAGING = ".staging"
# A record takes milliseconds to write; one that is older belongs to a dead writer.
_RECORD_MAX_AGE_S = 3600.0


class LocalStorage(Storage):
    """One directory. `url` is file:///absolute/path."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/"):
            raise InvalidArgument(
                f"store URL {url!r}: write file:///absolute/path", field="store_url"
            )
        self._root = Path(os.path.normpath(path))
        self.url = self._root.as_uri()
        with storage_errors(self.url):
            make_private(self._root)
            (self._root / _STAGING).mkdir(exist_ok=True)
        self._real = self._root.resolve()

    def _at(self, path: str) -> Path:
        """The file at `path`; DataLoss when links inside the store lead out of it."""
        at = self._root / check_path(path)
        if not at.resolve().is_relative_to(self._real):
            raise DataLoss(f"{at} leads out of the store", reason="STORE_LINK")
        return at

    def create(self, path: str, data: bytes) -> bool:
        at = self._at(path)
        staged = self._root / _STAGING / f"{secrets.token_hex(8)}.record"
        with storage_errors(self.url):
            if at.exists():
                return False
            _make_folders(at.parent)
            try:
                with staged.open("xb") as file:
                    file.write(data)
                    _sync(file)
                os.link(staged, at)
            except FileExistsError:
                return False
            except OSError as error:
                if isinstance(error, PermissionError | NotImplementedError) and staged.exists():
                    raise FailedPrecondition(
                        f"the file system of {self.url} has no hard links, so it can't create a "
                        "file exclusively: put the store on another one",
                        reason="STORE_NOT_EXCLUSIVE",
                        field="store_url",
                    ) from error
                raise
            finally:
                staged.unlink(missing_ok=True)
            _sync_folder(at.parent)
        return True

    def read(self, path: str) -> bytes:
        with storage_errors(self.url):
            return self._at(path).read_bytes()

    def open(self, path: str) -> IO[bytes]:
        with storage_errors(self.url):
            return self._at(path).open("rb")

    def names(self, path: str) -> list[str]:
        with storage_errors(self.url):
            try:
                return sorted(
                    entry.name
                    for entry in self._at(path).iterdir()
                    if not entry.name.startswith(".")
                )
            except (FileNotFoundError, NotADirectoryError):
                return []

    @contextmanager
    def new_tree(self, path: str) -> Iterator[Tree]:
        final = self._at(path)
        tree_id = secrets.token_hex(8)
        staged = self._root / _STAGING / tree_id
        lock = self._claim(tree_id, path)
        try:
            with storage_errors(self.url):
                staged.mkdir()
            yield _LocalTree(staged, final, self.url)
        except BaseException:
            _remove(staged)
            if not final.exists():
                self._lock_path(tree_id).unlink(missing_ok=True)
            raise
        else:
            self._lock_path(tree_id).unlink(missing_ok=True)
        finally:
            lock.close()

    def remove(self, path: str) -> None:
        with storage_errors(self.url):
            self._at(path).unlink(missing_ok=True)

    def remove_tree(self, path: str) -> None:
        with storage_errors(self.url):
            _remove(self._at(path))

    def abandoned(self) -> Iterator[str]:
        """The dead writer's staging is gone when its path is handed out; its lock is held."""
        for record in (self._root / _STAGING).glob("*.record"):
            with suppress(FileNotFoundError):  # its writer lives and was just done with it
                if time.time() - record.stat().st_mtime > _RECORD_MAX_AGE_S:
                    record.unlink()
        for lock_path in sorted((self._root / _STAGING).glob("*.lock")):
            with suppress(FileNotFoundError), lock_path.open("r+b") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer lives
                _remove(lock_path.with_suffix(""))
                if path := lock.read().decode(errors="replace"):
                    yield path
                lock_path.unlink(missing_ok=True)

    def local(self, path: str) -> Path | None:
        return self._at(path)

    def _lock_path(self, tree_id: str) -> Path:
        return self._root / _STAGING / f"{tree_id}.lock"

    def _claim(self, tree_id: str, path: str) -> IO[bytes]:
        """A held lock file that tells where the tree will be."""
        with storage_errors(self.url):
            while True:
                lock = self._lock_path(tree_id).open("w+b")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    # A sweeper may have taken the file away between open and flock.
                    if _same_file(lock, self._lock_path(tree_id)):
                        lock.write(path.encode())
                        _sync(lock)
                        return lock
                except BaseException:
                    lock.close()
                    self._lock_path(tree_id).unlink(missing_ok=True)
                    raise
                lock.close()


class _LocalTree:
    def __init__(self, staged: Path, final: Path, url: str) -> None:
        self._staged = staged
        self._final = final
        self._url = url

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        at = self._staged / check_path(path)
        with storage_errors(self._url):
            at.parent.mkdir(parents=True, exist_ok=True)
            with at.open("xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                _sync(file)
                os.fchmod(file.fileno(), 0o444)  # published files never change

    def commit(self) -> None:
        with storage_errors(self._url):
            for folder, _, _ in os.walk(self._staged):
                _sync_folder(Path(folder))
            _make_folders(self._final.parent)
            self._staged.rename(self._final)
            _sync_folder(self._final.parent)


def _same_file(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Brings a directory's entries to the disk, without which a rename may be lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(folder: Path) -> None:
    """mkdir -p that survives a power cut."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync_folder(new.parent)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    while folder.exists():
        with suppress(FileNotFoundError):  # somebody else removes it, too
            shutil.rmtree(folder)
