"""Where backups lie: a folder or a URL, with the store's own guarantees.

    backups/<id>/manifest.json       created exclusively and last: makes the backup
    backups/<id>/redis.jsonl.gz      Redis state (`redis_state.py`)
    backups/<id>/store.jsonl.gz      records of the store, and which contents they name
    running/<id>.json                while a backup is made, or restored (`marks.py`)
    contents/<content>/<attempt>/…   files of an artifact's content, or of a checkpoint
    index/<content>.json             created exclusively: this content is whole, in this attempt
    dropped/<content>.json           such a line, while its content is deleted (`pruning.py`)

Contents never change, so all backups of one archive share them, and the next backup copies what
is new. What has no manifest (or no line in the index) is not taken for a backup (or a content).
"""

from __future__ import annotations

import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import unquote, urlsplit

from plinth.shared.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.manifest import CHUNK_BYTES, HashingReader, canonical_json, parse_json
from plinth.shared.private_folders import make_private
from plinth.shared.storage import Storage, storage_errors
from plinth.shared.storage_url import open_storage

SCHEMA = 1
MANIFEST = "manifest.json"
REDIS_FILE = "redis.jsonl.gz"
STORE_FILE = "store.jsonl.gz"

_CONTENT = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}|job-[0-9a-f]{32}")
_ID = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}")

# (what, done, total or 0)
Tell = Callable[[str, int, int], None]

# path → {"size": bytes, "sha256": "sha256:…"}
Files: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Backup:
    """A finished backup: its id, and what its manifest says."""

    id: str
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Content:
    """A content that is whole in the archive."""

    path: str
    files: Files

    @property
    def bytes(self) -> int:
        return sum(int(entry["size"]) for entry in self.files.values())


class Archive:
    """All backups at one place. Safe to share between processes."""

    def __init__(self, place: str) -> None:
        """place: a folder or a URL (file://, s3://, gs://). FailedPrecondition: a place that can't
        create a file exclusively."""
        self.storage: Storage = open_storage(url_of(place))
        self.url = self.storage.url

    # -- making ----------------------------------------------------------------------------

    def contents(self) -> set[str]:
        """Names of the contents that are here, whole."""
        names = (name.removesuffix(".json") for name in self.storage.names("index"))
        return {name for name in names if is_content(name)}

    def add_content(self, name: str, files: Iterable[tuple[str, Iterable[bytes]]]) -> int:
        """Copies a content; how many bytes. Of two that add the same at once, one is kept."""
        assert is_content(name), name
        path = f"contents/{name}/{secrets.token_hex(8)}"
        kept: dict[str, Any] = {}
        with self.storage.new_tree(path) as tree:
            for file, chunks in files:
                reader = Hashing(chunks)
                tree.write(file, reader)
                kept[file] = {"size": reader.size, "sha256": reader.sha256}
            tree.commit()
            record = {"plinth_schema": SCHEMA, "path": path, "files": kept}
            first = self.storage.create(f"index/{name}.json", canonical_json(record))
        if not first:
            self.storage.remove_tree(path)
        return sum(entry["size"] for entry in kept.values())

    def finish(self, id: str, parts: Mapping[str, IO[bytes]], facts: Mapping[str, Any]) -> Backup:
        """Writes a backup's own files, then the manifest that makes it one."""
        path = f"backups/{id}"
        written: dict[str, Any] = {}
        with self.storage.new_tree(path) as tree:
            for name, file in parts.items():
                file.seek(0)
                reader = HashingReader(file)
                tree.write(name, reader)
                written[name] = {"size": reader.size, "sha256": reader.sha256}
            tree.commit()
            manifest = {**facts, "plinth_schema": SCHEMA, "id": id, "files": written}
            data = canonical_json(manifest)
            if not self.storage.create(f"{path}/{MANIFEST}", data):
                raise FailedPrecondition(f"{self.url} has a backup {id} already; try again")
        return Backup(id, manifest)

    # -- reading ---------------------------------------------------------------------------

    def find(self, id: str | None) -> Backup:
        """The backup of that id, or the newest that still has the name it was made with. NotFound
        says what there is."""
        ids = self.storage.names("backups")
        finished = self._finished(ids)
        if id is not None and id not in finished:
            raise NotFound(
                f"{self.url} has no finished backup {id!r}; there is: "
                f"{', '.join(finished[-20:]) or 'none'}",
                reason="BACKUP_NOT_FOUND",
            )
        if not finished:
            broken = f" ({len(ids)} that were never finished)" if ids else ""
            raise NotFound(
                f"{self.url} holds no finished backup{broken}; name the place that was given to "
                "`plinth backup`",
                reason="BACKUP_NOT_FOUND",
            )
        newest = [one for one in finished if is_id(one)] or finished
        return self._read(id or newest[-1])

    def finished(self) -> list[Backup]:
        """All finished backups, oldest first. DataLoss: a manifest is damaged, or too new."""
        found = []
        for id in self._finished(self.storage.names("backups")):
            with suppress(FileNotFoundError):  # somebody deletes it
                found.append(self._read(id))
        return found

    def _finished(self, ids: list[str]) -> list[str]:
        return [one for one in ids if MANIFEST in self.storage.names(f"backups/{one}")]

    def _read(self, id: str) -> Backup:
        where = f"backups/{id}/{MANIFEST}"
        return Backup(id, parse_json(self.storage.read(where), self.storage.uri(where), SCHEMA))

    def part(self, backup: Backup, name: str) -> IO[bytes]:
        """A copy of one of a backup's files, verified. DataLoss when it is not what was written."""
        where = f"backups/{backup.id}/{name}"
        spool = new_spool()
        try:
            expected = backup.manifest["files"][name]
            for chunk in self._verified(where, expected):
                with storage_errors(TEMPORARY):
                    spool.write(chunk)
        except BaseException:
            spool.close()
            raise
        spool.seek(0)
        return spool

    def content(self, name: str, folder: str = "index") -> Content:
        """What a line in `folder` says of it. DataLoss when that is missing."""
        if not is_content(name):
            raise DataLoss(f"{name[:80]!r} is no content's name", reason="BACKUP_DAMAGED")
        where = f"{folder}/{name}.json"
        try:
            data = self.storage.read(where)
        except FileNotFoundError as error:
            raise DataLoss(f"{self.url} lacks the content {name}", reason="BACKUP_DAMAGED") from (
                error
            )
        record = parse_json(data, self.storage.uri(where), SCHEMA)
        return Content(str(record["path"]), record["files"])

    def read(self, content: Content, file: str) -> Iterator[bytes]:
        """One file's chunks; DataLoss at the end if they are not what was written."""
        return self._verified(f"{content.path}/{file}", content.files[file])

    def _verified(self, where: str, expected: Mapping[str, Any]) -> Iterator[bytes]:
        try:
            source = self.storage.open(where)
        except FileNotFoundError as error:
            raise DataLoss(
                f"{self.storage.uri(where)} is missing", reason="BACKUP_DAMAGED"
            ) from error
        with source:
            reader = HashingReader(source)
            yield from reader
        if (reader.size, reader.sha256) != (expected["size"], expected["sha256"]):
            raise DataLoss(
                f"{self.storage.uri(where)} is damaged: {reader.size} bytes, {reader.sha256}; "
                f"written were {expected['size']} bytes, {expected['sha256']}",
                reason="BACKUP_DAMAGED",
            )


TEMPORARY = "of temporary files (TMPDIR)"
_SPOOL_BYTES = 64 << 20


def new_spool() -> IO[bytes]:
    """A file that is gone when it is closed: in memory while small, then in TMPDIR."""
    return tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)


def new_id() -> str:
    """Ids sort by time, to the millisecond."""
    now_ms = time.time_ns() // 1_000_000
    second = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ms // 1000))
    return f"{second}.{now_ms % 1000:03d}Z-{secrets.token_hex(4)}"


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def is_content(text: str) -> bool:
    """Whether a content may be called so."""
    return _CONTENT.fullmatch(text) is not None


class Hashing:
    """Hands chunks on and knows size and sha256 of what it handed on."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._reader = HashingReader(_Chunks(chunks))  # type: ignore[arg-type]  # (it calls `read`)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._reader)

    @property
    def size(self) -> int:
        return self._reader.size

    @property
    def sha256(self) -> str:
        return self._reader.sha256


class _Chunks:
    """An iterable of chunks as something that is read from."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def read(self, _: int) -> bytes:
        for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


def chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of a file, closed at its end."""
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def url_of(place: str) -> str:
    """A folder's URL, or the URL itself. A new folder is for its owner only: what lies in it
    holds what people asked and answered."""
    path = path_of(place)
    if path is None:
        return place
    with storage_errors(path.as_uri()), suppress(FileExistsError):
        make_private(path)
    return path.as_uri()


def path_of(place: str) -> Path | None:
    """The folder that is meant; None for what is remote. InvalidArgument for nothing at all."""
    if "://" in place:
        parts = urlsplit(place)
        return Path(unquote(parts.path)) if parts.scheme in ("file", "local") else None
    if not place.strip():
        raise InvalidArgument("name a folder or a URL (s3://bucket/path)", field="place")
    return Path(place).expanduser().absolute()
