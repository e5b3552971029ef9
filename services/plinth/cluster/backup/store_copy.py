"""The store's records and contents, as `store_look.py` finds them, copied into an archive and put
back."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from plinth.cluster.backup.archive import Archive, chunks_of
from plinth.cluster.backup.redis_state import MAX_LINE_BYTES, UNREADABLE
from plinth.cluster.backup.store_look import RECORD, StoreState, bytes_of, content_id
from plinth.shared.artifact_cache import verify_files
from plinth.shared.errors import AlreadyExists, DataLoss, FailedPrecondition
from plinth.shared.manifest import (
    MANIFEST,
    SCHEMA,
    HashingReader,
    parse_json,
)
from plinth.shared.storage import Storage, check_path

# (bytes of a content done, bytes of all)
Told = Callable[[int, int], None]


# -- the file ------------------------------------------------------------------------------------


def pack(state: StoreState, into: IO[bytes]) -> None:
    with gzip.GzipFile(fileobj=into, mode="wb", compresslevel=6, mtime=0) as packed:
        for path, record in state.records.items():
            packed.write(json.dumps({"record": path, "data": record}).encode() + b"\n")
        for path, manifest in state.contents.items():
            packed.write(json.dumps({"content": path, "manifest": manifest}).encode() + b"\n")
        count = len(state.records) + len(state.contents)
        packed.write(json.dumps({"lines": count}).encode() + b"\n")


def unpack(file: IO[bytes]) -> StoreState:
    """DataLoss when it is damaged, cut short, or names what is no record."""
    state = StoreState()
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                value = json.loads(line)
                if "record" in value:
                    path = check_path(value["record"])
                    if not RECORD.fullmatch(path):
                        raise ValueError(f"{path[:200]!r} is no record")
                    parse_json(value["data"].encode(), path, SCHEMA)
                    state.records[path] = value["data"]
                elif "content" in value:
                    content_id(value["content"])
                    state.contents[value["content"]] = value["manifest"]
                elif value == {"lines": len(state.records) + len(state.contents)}:
                    return state
                else:
                    raise ValueError("the number of its lines is another")
    except UNREADABLE as error:
        raise DataLoss(f"the list of the store is damaged: {error}", reason="BACKUP_DAMAGED") from (
            error
        )
    raise DataLoss("the list of the store is cut short", reason="BACKUP_DAMAGED")


# -- out -----------------------------------------------------------------------------------------


def copy_out(storage: Storage, state: StoreState, archive: Archive, told: Told) -> tuple[int, int]:
    """Copies the contents that the archive lacks; (contents, bytes) copied. DataLoss names the
    first file that is not what was published; then there is no backup."""
    have = archive.contents()
    missing = {p: m for p, m in state.contents.items() if content_id(p) not in have}
    total = sum(bytes_of(manifest) for manifest in missing.values())
    done = 0
    told(0, total)
    for path, manifest in missing.items():
        done += archive.add_content(content_id(path), _files(storage, path, manifest))
        told(min(done, total), total)
    return len(missing), done


def _files(
    storage: Storage, path: str, manifest: dict[str, Any]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    for file, expected in manifest["files"].items():
        yield file, _published(storage, f"{path}/{check_path(file)}", expected)
    yield MANIFEST, chunks_of(storage.open(f"{path}/{MANIFEST}"))


def _published(storage: Storage, where: str, expected: dict[str, Any]) -> Iterator[bytes]:
    try:
        file = storage.open(where)
    except FileNotFoundError as error:
        raise _damaged(storage, where, "missing") from error
    with file:
        reader = HashingReader(file)
        yield from reader
    if (reader.size, reader.sha256) != (expected["size"], expected["sha256"]):
        raise _damaged(storage, where, "not what was published")


def _damaged(storage: Storage, where: str, how: str) -> DataLoss:
    return DataLoss(
        f"{storage.uri(where)} is {how}: put it back from an older backup (`plinth restore --only "
        "store --merge-store`), then back up again",
        reason="ARTIFACT_DAMAGED",
    )


# -- back ----------------------------------------------------------------------------------------


def check_target(state: StoreState, there: StoreState, *, merge: bool, url: str) -> None:
    """AlreadyExists: the target's history is another one. FailedPrecondition: it holds more than
    the backup, and `merge` was not said. A part of the backup is no hindrance."""
    for path, record in there.records.items():
        if path in state.records and state.records[path] != record:
            raise AlreadyExists(
                f"{url}/{path} says something else than the backup: this store has another "
                "history; restore into an empty one (PLINTH_STORE_URL, or --data)",
                reason="STORE_DIFFERS",
            )
    more = [path for path in there.records if path not in state.records]
    if more and not merge:
        raise FailedPrecondition(
            f"the store {url} is not empty: it holds {len(more)} records that are not in the "
            f"backup, such as {more[0]}; restore into an empty one, or keep them and add the "
            "backup's with --merge-store",
            reason="TARGET_NOT_EMPTY",
        )


def copy_back(storage: Storage, state: StoreState, archive: Archive, told: Told) -> tuple[int, int]:
    """Contents first, then which versions were deleted, then the records that make contents
    artifacts, then what names these. Gives
    (contents, bytes) copied; what is there and whole is left."""
    total = sum(bytes_of(manifest) for manifest in state.contents.values())
    copied = size = done = 0
    told(0, total)
    for path, manifest in state.contents.items():
        if not _whole(storage, path, manifest):
            size += _copy_content(storage, path, manifest, archive)
            copied += 1
        done += bytes_of(manifest)
        told(done, total)
    marks = [path for path in state.records if path.endswith(".deleted")]
    first = dict.fromkeys([*marks, *state.versions])
    for path in [*first, *(p for p in state.records if p not in first)]:
        data = state.records[path].encode()
        if not storage.create(path, data) and storage.read(path) != data:
            raise AlreadyExists(f"{storage.uri(path)} was written meanwhile by somebody else")
    return copied, size


def _whole(storage: Storage, path: str, manifest: dict[str, Any]) -> bool:
    if MANIFEST not in storage.names(path):
        return False
    try:
        verify_files(storage, path, manifest)
    except DataLoss:
        return False
    return True


def _copy_content(storage: Storage, path: str, manifest: dict[str, Any], archive: Archive) -> int:
    """Over what is damaged there. DataLoss when the archive's copy is not what the list says."""
    content = archive.content(content_id(path))
    for file, expected in manifest["files"].items():
        if content.files.get(file) != expected:
            raise DataLoss(
                f"{archive.url}: {file} of {path} is not in the archive as it was listed",
                reason="BACKUP_DAMAGED",
            )
    storage.remove_tree(path)
    with storage.new_tree(path) as tree:
        for file in (*manifest["files"], MANIFEST):
            tree.write(file, archive.read(content, file))
        tree.commit()
    return content.bytes


def check_archive(state: StoreState, archive: Archive, told: Told) -> int:
    """Reads every content and compares digests, changing nothing; bytes read."""
    total = sum(bytes_of(manifest) for manifest in state.contents.values())
    done = 0
    for path in state.contents:
        content = archive.content(content_id(path))
        for file in content.files:
            for chunk in archive.read(content, file):
                done += len(chunk)
        told(min(done, total), total)
    return done
