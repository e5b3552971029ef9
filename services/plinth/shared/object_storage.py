"""The store in a bucket (s3://, gs://): exclusive by conditional put.

A tree is written in place, under a name that no record knows yet: it is published by the record
that names it. What a killed writer leaves there stays until somebody deletes it, since buckets
have no locks by which a dead writer could be told from a slow one.

Credentials come from the environment alone, by the names that each cloud's own tools use
(AWS_ACCESS_KEY_ID, …, GOOGLE_APPLICATION_CREDENTIALS), or from the machine's own identity.
"""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, S3Store

from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
    Unavailable,
)
from plinth.shared.storage import EXCLUSIVE, Storage, Tree, check_path, storage_errors

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# What is asked for at once. S3 takes 10,000 parts: files up to 312 GiB.
_PART_BYTES = 32 << 20
_PARTS_AT_ONCE = 4
# Of one request, so that a part may pass at 280 kB/s.
_CLIENT: ClientConfig = {"connect_timeout": "5s", "timeout": "120s"}
# A server that restarts is waited for, and one that isn't there is told of within half a minute.
_RETRY: RetryConfig = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"max_backoff": timedelta(seconds=5)},
}
_CLAIM = "plinth-claim"
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_BASE_URL",),
}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (of an identity that may get, put, list "
    "and delete objects of this bucket), AWS_ENDPOINT_URL where it isn't Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the path of a service account's key (with the role "
    "Storage Object User on this bucket)",
}


class ObjectStorage(Storage):
    """One prefix in one bucket. `url` is s3://bucket/prefix or gs://bucket/prefix."""

    def __init__(self, url: str) -> None:
        self.scheme, bucket, prefix = _parts(url)
        self.url = f"{self.scheme}://{bucket}{'/' if prefix else ''}{prefix}"
        self._failed: list[str] = []
        kind: type[S3Store] | type[GCSStore] = S3Store if self.scheme == "s3" else GCSStore
        client: ClientConfig = {**_CLIENT, "allow_http": _is_plain_http(self.scheme)}
        try:
            self._store = kind(
                bucket, prefix=prefix or None, client_options=client, retry_config=_RETRY
            )
        except BaseError as error:  # (a key file that isn't there, or is none)
            raise FailedPrecondition(
                f"the store {self.url}: {_one_line(error)}; check {_CREDENTIALS[self.scheme]}",
                reason="STORE_PERMISSION",
            ) from error

    def create(self, path: str, data: bytes) -> bool:
        claim = {_CLAIM: secrets.token_hex(16)}
        with self._errors():
            try:
                obstore.put(self._store, check_path(path), data, mode="create", attributes=claim)
            except AlreadyExistsError:
                # Where an answer was lost, the client asked again: then what is there is ours.
                with suppress(FileNotFoundError):
                    there = obstore.get(self._store, path).attributes
                    return there.get(_CLAIM) == claim[_CLAIM]
                return False
            except BaseError as error:
                if isinstance(error, NotSupportedError) or "<Code>NotImplemented<" in str(error):
                    raise FailedPrecondition(
                        f"the store {self.url} has no conditional create, and two writers could "
                        f"overwrite each other; {EXCLUSIVE}",
                        reason="STORE_NOT_EXCLUSIVE",
                        field="store_url",
                    ) from error
                raise
        return True

    def read(self, path: str) -> bytes:
        with self._errors(may_be_missing=True):
            return bytes(obstore.get(self._store, check_path(path)).bytes())

    def open(self, path: str) -> IO[bytes]:
        with self._errors(may_be_missing=True):
            file = obstore.open_reader(self._store, check_path(path), buffer_size=_PART_BYTES)
        return cast(IO[bytes], io.BufferedReader(_Download(self, file)))

    def names(self, path: str) -> list[str]:
        with self._errors():
            found = obstore.list_with_delimiter(self._store, check_path(path))
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        names = {path.rpartition("/")[2] for path in paths}
        return sorted(name for name in names if not name.startswith("."))

    @contextmanager
    def new_tree(self, path: str) -> Iterator[Tree]:
        tree = _ObjectTree(self, check_path(path))
        try:
            yield tree
        except BaseException as error:
            # A record whose answer never came may still appear, and what it names must be there.
            known = isinstance(error, PlinthError) and not isinstance(error, Unavailable)
            if known if tree.committed else not self._is_removed(path):
                self._failed.append(path)
            raise

    def remove(self, path: str) -> None:
        with self._errors(), suppress(FileNotFoundError):
            obstore.delete(self._store, check_path(path))

    def remove_tree(self, path: str) -> None:
        with self._errors():
            paths = self._below(path)
            try:
                obstore.delete(self._store, paths)
            except FileNotFoundError:  # a rival removes the same
                for one in paths:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, one)

    def abandoned(self) -> Iterator[str]:
        while self._failed:
            yield self._failed.pop()

    def local(self, path: str) -> Path | None:
        return None

    def put(self, path: str, chunks: Iterable[bytes]) -> None:
        """Writes a file, in parts that are kept in memory while they are sent."""
        with storage_errors(self.url), self._errors():
            pieces = iter(chunks)
            first = _up_to(pieces, _PART_BYTES)
            if len(first) < _PART_BYTES:  # (parts cost three requests, and none may be empty)
                obstore.put(self._store, check_path(path), first, use_multipart=False)
                return
            obstore.put(
                self._store,
                check_path(path),
                chain((first,), pieces),
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def _is_removed(self, path: str) -> bool:
        """Whether a tree that failed could be removed; its own error is the one to tell."""
        try:
            self.remove_tree(path)
        except PlinthError:
            return False
        return True

    def _below(self, path: str) -> list[str]:
        found = obstore.list(self._store, check_path(path), chunk_size=1000)
        return [entry["path"] for entries in found for entry in entries]

    @contextmanager
    def _errors(self, *, may_be_missing: bool = False) -> Iterator[None]:
        """What the client raises, as Plinth's errors. FileNotFoundError passes where a file is
        asked for, unless it is the bucket that isn't there."""
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            is_answer = may_be_missing and isinstance(error, FileNotFoundError)
            if is_answer and "<Code>NoSuchBucket<" not in str(error):
                raise
            raise _explained(self.url, self.scheme, error) from error


class _ObjectTree:
    def __init__(self, storage: ObjectStorage, root: str) -> None:
        self._storage = storage
        self._root = root
        self.committed = False

    def write(self, path: str, chunks: Iterable[bytes]) -> None:
        self._storage.put(f"{self._root}/{check_path(path)}", chunks)

    def commit(self) -> None:
        """The files are there, and the record that names them follows."""
        self.committed = True


class _Download(io.RawIOBase):
    """A file that is asked for in parts, each asked again where the connection broke."""

    def __init__(self, storage: ObjectStorage, file: obstore.ReadableFile) -> None:
        self._storage = storage
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._storage._errors():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with self._storage._errors():
            data = memoryview(self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def _up_to(pieces: Iterator[bytes], size: int) -> bytes:
    """Pieces until they are `size` bytes together, or all."""
    found = bytearray()
    for piece in pieces:
        found += piece
        if len(found) >= size:
            break
    return bytes(found)


def _parts(url: str) -> tuple[str, str, str]:
    """(scheme, bucket, prefix)."""
    parts = urlsplit(url)
    if (
        not parts.netloc
        or parts.query
        or parts.fragment
        or not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", parts.netloc)
    ):
        # The URL isn't told: somebody may have written a password into it.
        raise InvalidArgument(
            f"a store URL is {parts.scheme}://bucket/prefix, with nothing else in it: credentials "
            f"are set as {_CREDENTIALS[parts.scheme]}",
            field="store_url",
        )
    prefix = parts.path.strip("/")
    if not prefix:
        return parts.scheme, parts.netloc, ""
    if " " in prefix:  # (stores disagree on how one is signed)
        raise InvalidArgument(f"store URL {url!r}: no blanks, please", field="store_url")
    return parts.scheme, parts.netloc, check_path(prefix)


def _is_plain_http(scheme: str) -> bool:
    """Whether the operator's own endpoint says so; the clouds' never do."""
    given = (os.environ.get(name) for name in _ENDPOINTS[scheme])
    return next((url for url in given if url), "").startswith("http://")


def _explained(url: str, scheme: str, error: Exception) -> PlinthError:
    """What the store said, and what would be right."""
    text = _one_line(error)
    code = re.search(r"<Code>([^<]+)</Code>", text)
    said = re.search(r"<Message>([^<]+)</Message>", text)
    told = text[:400] if code is None else f"{code[1]}{f' ({said[1]})' if said else ''}"
    if code and code[1] == "NoSuchBucket":
        return FailedPrecondition(
            f"the store {url}: there is no such bucket; make it, or correct the store's URL or "
            f"{_ENDPOINTS[scheme][-1]}",
            reason="STORE_BUCKET_MISSING",
            field="store_url",
        )
    if code and code[1] in ("XMinioStorageFull", "QuotaExceeded", "QuotaExceededException"):
        return ResourceExhausted(
            f"the store {url} is full: {told}; nothing was published", reason="DISK_FULL"
        )
    by_machine = re.search(r"/computeMetadata/|/latest/(api/token|meta-data)", text)
    refused = re.search(r"status code: 40[13]\b", text) and not by_machine
    if refused or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return FailedPrecondition(
            f"the store {url} refuses us: {told}; check {_CREDENTIALS[scheme]}",
            reason="STORE_PERMISSION",
        )
    advice = ""
    if by_machine:
        advice = (
            "; no credentials are set, and this machine has no identity of its own: set "
            f"{_CREDENTIALS[scheme]}"
        )
    return Unavailable(f"the store {url} failed: {told}{advice}", reason="STORE_FAILED")


def _one_line(error: Exception) -> str:
    """The client's message without its debugging part."""
    return " ".join(str(error).partition("\nDebug source:")[0].split())
