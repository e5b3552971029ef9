"""Files made into the next version of an artifact: written once, seen whole or not at all.

What a publisher wrote without living to record it is removed by the next one. How artifacts lie on
the storage: see `store.py`. Blocking; safe to share between threads and processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from secrets import token_hex
from typing import Any

from plinth.shared import manifest as manifests
from plinth.shared.artifact_versions import ArtifactRecord, ArtifactVersions, content_owner
from plinth.shared.errors import InvalidArgument
from plinth.shared.manifest import MANIFEST, SCHEMA, check_name
from plinth.shared.storage import Storage, Tree
from plinth.shared.version import CODE_VERSION
from plinth.v1 import owner_pb2

# Path → {"size": bytes, "sha256": "sha256:…"}.
Entries = Mapping[str, Mapping[str, Any]]


class Publisher:
    """Publishes on one storage."""

    def __init__(self, storage: Storage, versions: ArtifactVersions) -> None:
        self._storage, self._versions = storage, versions

    def check(self, name: str, kind: str) -> None:
        """InvalidArgument for what can be no artifact's name or kind."""
        check_name(name, "name")
        check_name(kind, "kind")

    def publish(
        self,
        name: str,
        kind: str,
        files: Iterable[tuple[str, Iterable[bytes]]],
        about: Mapping[str, Any],
        check: Callable[[Entries], None],
        owner: owner_pb2.Owner,
    ) -> ArtifactRecord:
        """The next version of `name`, or the one that is the same, made from the same inputs.

        files: (path, its bytes). about: of the manifest, what `ArtifactStore.publish` takes by
        name. check: raises if what was written is not what was meant. ResourceExhausted on a full
        disk, with nothing left behind.
        """
        self.check(name, kind)
        self.sweep()
        description: dict[str, Any] = {
            "parents": [],
            "config": {},
            "metrics": {},
            "data_digests": {},
            "input_digest": None,
            "license": None,
            "extra": {},
            **about,
            "plinth_schema": SCHEMA,
            "name": name,
            "kind": kind,
            "code_version": CODE_VERSION,
            "created_unix_ms": now_ms(),
        }
        manifests.canonical_json(description)  # refuse what is no JSON before copying gigabytes
        path = f"artifacts/{name}/content/{token_hex(8)}-{token_hex(8)}"
        try:
            with self._storage.new_tree(path) as tree:
                description["files"] = _copy(tree, files)
                check(description["files"])
                description["digest"] = manifests.content_digest(description["files"])
                tree.write(MANIFEST, [manifests.canonical_json(description)])
                tree.commit()
                row = description | {"tenant": owner.tenant, "key_id": owner.key_id}
                record = self._versions.record(name, path, row, _same_as(description))
        except BaseException:
            self.sweep()
            raise
        if record.path != path:  # the same was published before
            self._storage.remove_tree(path)
        return record

    def sweep(self) -> None:
        """Removes what dead publishers committed without living to record it."""
        for path in self._storage.abandoned():
            name = content_owner(path)
            if name and all(path != record.path for record in self._versions.newest_first(name)):
                self._storage.remove_tree(path)


def chunks_of(files: Sequence[manifests.SourceFile]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Files on this machine, as `Publisher.publish` takes them."""
    for file in files:
        yield file.path, _read(file)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _same_as(description: Mapping[str, Any]) -> Callable[[ArtifactRecord], bool]:
    """Whether a version has this content, made from these inputs."""
    wanted = tuple(description[field] for field in ("digest", "input_digest", "kind"))
    return lambda there: (there.digest, there.input_digest, there.kind) == wanted


def _read(file: manifests.SourceFile) -> Iterator[bytes]:
    try:
        with file.source.open("rb") as source:
            while chunk := source.read(manifests.CHUNK_BYTES):
                yield chunk
    except FileNotFoundError as error:
        raise InvalidArgument(
            f"{file.source} vanished while it was published", field="source"
        ) from error


def _copy(tree: Tree, files: Iterable[tuple[str, Iterable[bytes]]]) -> dict[str, dict[str, Any]]:
    """Writes the files into the tree; path → size and digest of what was written."""
    entries = {}
    for path, chunks in files:
        hashed = manifests.HashedChunks(chunks)
        tree.write(path, hashed)
        entries[path] = {"size": hashed.size, "sha256": hashed.sha256}
    return entries
