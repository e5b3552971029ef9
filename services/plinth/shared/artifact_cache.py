"""Artifacts as local folders: in place on a file store, else copied once, verified on the way."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plinth.shared.errors import DataLoss
from plinth.shared.manifest import MANIFEST, HashingReader, canonical_json, content_digest
from plinth.shared.private_folders import make_private
from plinth.shared.storage import Storage, check_path, storage_errors


def verify_files(storage: Storage, path: str, manifest: dict[str, Any]) -> None:
    """Reads every file of the content at `path`; DataLoss names the first that differs."""
    _check_manifest(storage, path, manifest)
    for file, expected in manifest["files"].items():
        for _ in _verified(storage, path, file, expected):
            pass


class ArtifactCache:
    """Copies of remote artifacts under `folder`, by content: <folder>/<id of the content>."""

    def __init__(self, storage: Storage, folder: Path | None) -> None:
        self._storage = storage
        self._folder = folder or Path.home() / ".cache" / "plinth" / "artifacts"

    def folder(self, path: str, manifest: dict[str, Any]) -> Path:
        """The local folder of the content at `path` of the store. DataLoss when it is damaged."""
        if (local := self._storage.local(path)) is not None:
            if not (local / MANIFEST).is_file():
                raise DataLoss(f"{local} is missing", reason="ARTIFACT_DAMAGED")
            return local
        cached = self._folder / path.rpartition("/")[2]
        if not cached.exists():
            self._copy(path, manifest, cached)
        return cached

    def _copy(self, path: str, manifest: dict[str, Any], cached: Path) -> None:
        """Copies to a hidden folder, then renames: a copy is whole or not there."""
        _check_manifest(self._storage, path, manifest)
        with storage_errors(self._folder.as_uri()):
            make_private(self._folder)
            staged = Path(tempfile.mkdtemp(prefix=".copy-", dir=self._folder))
        try:
            with storage_errors(self._folder.as_uri()):
                for file, expected in manifest["files"].items():
                    to = staged / check_path(file)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    with to.open("xb") as out:
                        for chunk in _verified(self._storage, path, file, expected):
                            out.write(chunk)
                (staged / MANIFEST).write_bytes(canonical_json(manifest))
                try:
                    staged.rename(cached)
                except OSError:
                    # Another process made the same copy meanwhile: its content is equal.
                    if not (cached / MANIFEST).is_file():
                        raise
        finally:
            if staged.exists():
                shutil.rmtree(staged)


def _check_manifest(storage: Storage, path: str, manifest: dict[str, Any]) -> None:
    if content_digest(manifest["files"]) != manifest["digest"]:
        raise DataLoss(
            f"{storage.uri(path)}/{MANIFEST} is damaged: its digest is not that of its files",
            reason="ARTIFACT_DAMAGED",
        )


def _verified(storage: Storage, path: str, file: str, expected: dict[str, Any]) -> Iterator[bytes]:
    """A file's chunks; DataLoss at the end when they were not what was published."""
    where = f"{storage.uri(path)}/{file}"
    try:
        source = storage.open(f"{path}/{check_path(file)}")
    except FileNotFoundError as error:
        raise DataLoss(f"{where} is missing", reason="ARTIFACT_DAMAGED") from error
    with source:
        reader = HashingReader(source)
        yield from reader
    if (reader.size, reader.sha256) != (expected["size"], expected["sha256"]):
        raise DataLoss(
            f"{where} is damaged: {reader.size} bytes, {reader.sha256}; "
            f"published were {expected['size']} bytes, {expected['sha256']}",
            reason="ARTIFACT_DAMAGED",
        )
