"""The versions of artifacts: numbered records that say which content each is.

A record is created exclusively and never changes (`record_log.py`), so what was read last is kept.
A version that was deleted keeps its record, so that its number is not given again, and has a second
one beside it that says so. How they lie on the storage: see `store.py`. All calls block. Safe to
share between threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plinth.shared.bounded import Bounded
from plinth.shared.errors import DataLoss, NotFound
from plinth.shared.manifest import MANIFEST, SCHEMA, canonical_json, check_name, parse_json
from plinth.shared.record_log import RecordLog
from plinth.shared.storage import Storage
from plinth.v1 import owner_pb2

_DELETED = re.compile(r"([0-9]{8})\.deleted")
_KEPT = 200_000  # files in the manifests that are kept
_RECORD_WEIGHT = 100  # of a manifest beside its files
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
    tenant: str = ""
    key_id: str = ""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def owner(self) -> owner_pb2.Owner:
        """Whose key it was published with; empty where none was."""
        return owner_pb2.Owner(tenant=self.tenant, key_id=self.key_id)


def content_owner(path: str) -> str | None:
    """The name under which the content at `path` was published; None where none may lie."""
    match = _CONTENT.fullmatch(path)
    return match[1] if match else None


class ArtifactVersions:
    """The version records of all artifacts on one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._records: Bounded[tuple[str, int], ArtifactRecord] = Bounded(_KEPT)

    def names(self) -> list[str]:
        return self._storage.names("artifacts")

    def numbers(self, name: str) -> list[int]:
        """Of `name`'s versions, ascending; none where there is no such artifact."""
        log = self._log(name)
        found = log.names()
        gone = {int(match[1]) for one in found if (match := _DELETED.fullmatch(one))}
        return [number for number in log.numbers(found) if number not in gone]

    def newest_first(
        self,
        name: str,
        below: int | None = None,
        damaged: Callable[[str], None] | None = None,
    ) -> Iterator[ArtifactRecord]:
        """The versions of `name`, of lower numbers than `below`. damaged: is told of one that can't
        be read ("chat@3"), which is DataLoss otherwise."""
        for number in reversed(self.numbers(name)):
            if below is not None and number >= below:
                continue
            try:
                record = self.load(name, number)
            except NotFound:  # deleted since
                continue
            except DataLoss:
                if damaged is None:
                    raise
                damaged(f"{name}@{number}")
            else:
                yield record

    def record(
        self,
        name: str,
        path: str,
        about: Mapping[str, Any],
        same: Callable[[ArtifactRecord], bool],
    ) -> ArtifactRecord:
        """Makes the content at `path` the next version of `name`, unless there is a version that is
        the `same`: the newest such. about: kind, digest and input_digest of the content, and
        created_unix_ms, tenant and key_id of the version."""
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
            if about.get("tenant"):
                row["owner"] = {"tenant": about["tenant"], "key_id": about["key_id"]}
            if (owner := content_owner(path)) != name:
                row["content_of"] = owner
            if log.append(number, row):
                return self.load(name, number)

    def link(self, name: str, source: ArtifactRecord, about: Mapping[str, Any]) -> ArtifactRecord:
        """Makes the content of `source` the next version of `name` as well, unless there is such
        a one; about: as in `record`. NotFound, and nothing is made, if `source` was deleted
        meanwhile: who deletes marks it first, looks for others with its content, and removes that.
        """
        before = self.numbers(name)
        try:
            made = self.record(
                name,
                source.path,
                about,
                lambda there: (there.path, there.kind) == (source.path, source.kind),
            )
        except DataLoss:
            if source.version in self.numbers(source.name):
                raise
        else:
            if made.version in before or source.version in self.numbers(source.name):
                return made
        log = self._log(name)
        for number in set(self.numbers(name)) - set(before):
            if log.read(number)["content"] == source.path:
                self.delete(name, number)
        raise NotFound(
            f"{source.ref} was deleted meanwhile", reason="VERSION_NOT_FOUND", field="reference"
        )

    def load(self, name: str, version: int) -> ArtifactRecord:
        """One version that there is. DataLoss: its record or its manifest is damaged. NotFound: it
        was deleted."""
        if (known := self._records.get((name, version))) is not None:
            return known
        row = self._log(name).read(version)
        path = str(row["content"])
        owner = content_owner(path)
        if owner is None or owner != row.get("content_of", name):
            raise DataLoss(f"the record of {name}@{version} points to {path!r}")
        try:
            data = self._storage.read(f"{path}/{MANIFEST}")
        except FileNotFoundError as error:
            if version not in self.numbers(name):
                raise NotFound(
                    f"{name}@{version} was deleted", reason="VERSION_NOT_FOUND", field="reference"
                ) from error
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
            tenant=str(row.get("owner", {}).get("tenant", "")),
            key_id=str(row.get("owner", {}).get("key_id", "")),
        )
        self._records.put((name, version), record, _RECORD_WEIGHT + len(manifest["files"]))
        return record

    def delete(self, name: str, version: int) -> bool:
        """Marks a version as deleted; False if it was so already. Its content stays."""
        data = canonical_json({"deleted": f"{name}@{version}", "plinth_schema": SCHEMA})
        return self._storage.create(self._mark(name, version), data)

    def undelete(self, name: str, version: int) -> None:
        """Takes the mark of `delete` away, before the content has gone."""
        self._storage.remove(self._mark(name, version))

    def deleted_contents(self, name: str) -> list[str]:
        """Paths of the contents of `name`'s deleted versions, which may have gone already."""
        log = self._log(name)
        gone = set(log.numbers()) - set(self.numbers(name))
        return sorted({str(log.read(number)["content"]) for number in gone})

    def _mark(self, name: str, version: int) -> str:
        return f"artifacts/{check_name(name, 'name')}/versions/{version:08d}.deleted"

    def _log(self, name: str) -> RecordLog:
        return RecordLog(self._storage, f"artifacts/{check_name(name, 'name')}/versions")
