"""What an artifact says of itself: `manifest.json`, the names it may have, its digests.

The content digest is sha256 over the canonical JSON of [path, size, sha256] of every file, sorted
by path: equal for equal content, wherever and whenever it was published.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from plinth.shared.errors import DataLoss, InvalidArgument, NotFound
from plinth.shared.storage import check_path

SCHEMA = 1
MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20
MAX_FILES = 100_000

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REFERENCE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]{0,63})"
    r"(@(?P<version>[1-9][0-9]{0,7})|:(?P<alias>[a-z0-9][a-z0-9._-]{0,63}))?"
)


def check_name(value: str, what: str) -> str:
    """`value` if it is a name of an artifact, alias, kind or deployment; else InvalidArgument."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidArgument(
            f"{what} {str(value)[:80]!r}: use 1 to 64 of a-z 0-9 . _ -, "
            "starting with a letter or a digit",
            reason="BAD_NAME",
            field=what,
        )
    return value


@dataclass(frozen=True)
class Reference:
    """`name`, `name@version` or `name:alias`; a bare name is the latest version."""

    name: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise InvalidArgument(
                f"{text[:140]!r} is no artifact reference: write name, name@version or name:alias",
                reason="BAD_REFERENCE",
                field="reference",
            )
        version = match["version"]
        return cls(match["name"], int(version) if version else None, match["alias"])

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@{self.version}"
        return self.name if self.alias is None else f"{self.name}:{self.alias}"


@dataclass(frozen=True)
class SourceFile:
    """One file to be published: where it is and what it is called in the artifact."""

    path: str
    source: Path


def source_files(source: Path) -> list[SourceFile]:
    """The files of a folder (or one file), sorted by name.

    InvalidArgument: links, devices and the like, names that the store doesn't take, no file at
    all. A manifest that Plinth wrote (the folder is an artifact) is left out.
    """
    if not source.exists():
        raise NotFound(f"{source} does not exist", field="source")
    if source.is_file():
        return [SourceFile(check_path(source.name), source)]
    files = []
    for folder, folders, names in os.walk(source):
        for name in [*folders, *names]:
            if (Path(folder) / name).is_symlink():
                raise InvalidArgument(
                    f"{Path(folder) / name} is a link: an artifact holds plain files only, "
                    "copy what it points to",
                    field="source",
                )
        files += [Path(folder) / name for name in names]
    found = [_source_file(source, file) for file in files]
    kept = [file for file in found if file.path != MANIFEST or not _is_ours(file.source)]
    if any(file.path == MANIFEST for file in kept):
        raise InvalidArgument(
            f"{source / MANIFEST}: this name is taken by the artifact's own manifest, rename it",
            field="source",
        )
    if not kept:
        raise InvalidArgument(f"{source} holds no file to publish", field="source")
    if len(kept) > MAX_FILES:
        raise InvalidArgument(
            f"{source} holds {len(kept)} files; an artifact has at most {MAX_FILES}",
            field="source",
        )
    return sorted(kept, key=lambda file: file.path)


def _source_file(source: Path, file: Path) -> SourceFile:
    if not stat.S_ISREG(file.lstat().st_mode):
        raise InvalidArgument(f"{file} is no plain file", field="source")
    return SourceFile(check_path(file.relative_to(source).as_posix()), file)


def _is_ours(manifest: Path) -> bool:
    try:
        content = json.loads(manifest.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and "plinth_schema" in content


class HashedChunks:
    """Hands out chunks and knows size and sha256 of what it handed out.

    So what is recorded is what was written, even if the source changes meanwhile.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class HashingReader(HashedChunks):
    """The same of a file."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(iter(lambda: file.read(CHUNK_BYTES), b""))


def content_digest(files: dict[str, dict[str, Any]]) -> str:
    """`files`: path → {"size": bytes, "sha256": "sha256:…"}."""
    rows = [[path, entry["size"], entry["sha256"]] for path, entry in sorted(files.items())]
    return f"sha256:{hashlib.sha256(canonical_json(rows)).hexdigest()}"


def canonical_json(value: Any) -> bytes:
    """One spelling per value, so that it can be hashed and compared. NaN is refused."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"not JSON: {error}; config, metrics and extra hold numbers, strings, lists and "
            "mappings (no NaN or infinity)",
            reason="NOT_JSON",
        ) from error
    return text.encode()


def parse_json(data: bytes, what: str, schema: int) -> dict[str, Any]:
    """A record read back: DataLoss when it is damaged or of a schema newer than this code."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise DataLoss(f"{what} is damaged: {error}", reason="RECORD_DAMAGED") from error
    found = value.get("plinth_schema") if isinstance(value, dict) else None
    if not isinstance(found, int) or found < 1:
        raise DataLoss(f"{what} is no Plinth record", reason="RECORD_DAMAGED")
    if found > schema:
        raise DataLoss(
            f"{what} has schema {found}, this Plinth reads up to {schema}: upgrade it",
            reason="RECORD_TOO_NEW",
        )
    assert isinstance(value, dict)
    return value
