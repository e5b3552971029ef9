"""The versions of artifacts: numbered records that say which content each is.

A record is created exclusively and never changes (`record_log.py`), so what was read is kept. How
they lie on the storage: see `store.py`. All calls block. Safe to share between threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plinth.shared.errors import DataLoss
from plinth.shared.manifest import MANIFEST, SCHEMA, canonical_json, check_name, parse_json
from plinth.shared.record_log import RecordLog
from plinth.shared.storage import Storage
from plinth.v1 import artifacts_pb2

_CONTENT = re.compile(r"artifacts/([a-z0-9][a-z0-9._-]{0,63})/content/[0-9a-f]{16}-[0-9a-f]{16}")


@dataclass(frozen=True)
class ArtifactRecord:
    """One version of one artifact. `manifest` is shared: do not change it."""

    name: str
    version: int
    kind: str
    digest: str
    uri: str
    parents: tuple[str, ...]
    manifest: dict[str, Any]
    created_unix_ms: int
    input_digest: str | None = None
    # Path of the content below the store's root.
    path: str = ""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    def to_proto(self, aliases: Sequence[str] = ()) -> artifacts_pb2.Artifact:
        return artifacts_pb2.Artifact(
            name=self.name,
            version=self.version,
            kind=self.kind,
            digest=self.digest,
            uri=self.uri,
            parents=self.parents,
            manifest_json=canonical_json(self.manifest).decode(),
            aliases=aliases,
            created_unix_ms=self.created_unix_ms,
        )


def content_owner(path: str) -> str | None:
    """The name under which the content at `path` was published; None where none may lie."""
    match = _CONTENT.fullmatch(path)
    return match[1] if match else None


class ArtifactVersions:
    """The version records of all artifacts on one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._logs: dict[str, RecordLog] = {}
        self._records: dict[tuple[str, int], ArtifactRecord] = {}

    def names(self) -> list[str]:
        return self._storage.names("artifacts")

    def numbers(self, name: str) -> list[int]:
        """Of `name`'s versions, ascending; none where there is no such artifact."""
        return self._log(name).numbers()

    def newest_first(self, name: str) -> list[ArtifactRecord]:
        return [self.load(name, number) for number in reversed(self.numbers(name))]

    def record(
        self,
        name: str,
        path: str,
        about: Mapping[str, Any],
        same: Callable[[ArtifactRecord], bool],
    ) -> ArtifactRecord:
        """Makes the content at `path` the next version of `name`, unless there is a version that is
        the `same`: the newest such. about: kind, digest and input_digest of the content, and
        created_unix_ms of the version."""
        log = self._log(name)
        while True:
            # The number first: whatever a rival records after the look takes this number from us.
            number = log.last() + 1
            if (there := next(filter(same, self.newest_first(name)), None)) is not None:
                return there
            row = {
                "name": name,
                "version": number,
                "kind": about["kind"],
                "digest": about["digest"],
                "input_digest": about["input_digest"],
                "content": path,
                "created_unix_ms": about["created_unix_ms"],
            }
            if (owner := content_owner(path)) != name:
                row["content_of"] = owner
            if log.append(number, row):
                return self.load(name, number)

    def load(self, name: str, version: int) -> ArtifactRecord:
        """One version that there is. DataLoss: its record or its manifest is damaged."""
        if (name, version) in self._records:
            return self._records[name, version]
        row = self._log(name).read(version)
        path = str(row["content"])
        owner = content_owner(path)
        if owner is None or owner != row.get("content_of", name):
            raise DataLoss(f"the record of {name}@{version} points to {path!r}")
        try:
            data = self._storage.read(f"{path}/{MANIFEST}")
        except FileNotFoundError as error:
            raise DataLoss(f"{name}@{version} has no {MANIFEST} at {path}") from error
        manifest = parse_json(data, f"the manifest of {name}@{version}", SCHEMA)
        if manifest["digest"] != row["digest"]:
            raise DataLoss(f"the manifest of {name}@{version} is not the one it was published with")
        record = ArtifactRecord(
            name=name,
            version=version,
            kind=row["kind"],
            digest=row["digest"],
            uri=self._storage.uri(path),
            parents=tuple(manifest["parents"]),
            manifest=manifest,
            created_unix_ms=row["created_unix_ms"],
            input_digest=row["input_digest"],
            path=path,
        )
        self._records[name, version] = record
        return record

    def _log(self, name: str) -> RecordLog:
        folder = f"artifacts/{check_name(name, 'name')}/versions"
        return self._logs.setdefault(name, RecordLog(self._storage, folder))
