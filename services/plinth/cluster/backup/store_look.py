"""What a store says: its records, and the manifests of the contents that they name.

Records are listed in an order in which nothing names what was not there yet: steps, deployments
and aliases first, versions after them, and versions again until every parent is among them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.shared.manifest import MANIFEST, SCHEMA, Reference, content_digest, parse_json
from plinth.shared.storage import Storage

RECORD = re.compile(
    r"artifacts/[^/]+/versions/\d{8}\.(json|deleted)|artifacts/[^/]+/aliases/[^/]+/\d{8}\.json"
    r"|deployments/[^/]+/\d{8}\.json|steps/[^/]+/\d{8}\.json"
)
_CONTENT = re.compile(
    r"artifacts/[a-z0-9][a-z0-9._-]{0,63}/content/(?P<id>[0-9a-f]{16}-[0-9a-f]{16})"
)


@dataclass
class StoreState:
    """What a store says: records by path, and the manifest of each content by its path."""

    records: dict[str, str] = field(default_factory=dict)
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def versions(self) -> list[str]:
        """Of those that were not deleted."""
        found = (path for path in self.records if "/versions/" in path and path.endswith(".json"))
        return [path for path in found if _mark(path) not in self.records]


def _mark(version: str) -> str:
    """Of a version's record, the one that says that it was deleted."""
    return f"{version.removesuffix('.json')}.deleted"


def content_id(path: str) -> str:
    """The name of a content in an archive. DataLoss when the path is none of a content."""
    match = _CONTENT.fullmatch(path)
    if match is None:
        raise DataLoss(f"{path[:200]!r} is no content's path", reason="RECORD_DAMAGED")
    return match["id"]


def bytes_of(manifest: dict[str, Any]) -> int:
    return sum(int(entry["size"]) for entry in manifest["files"].values())


def look(storage: Storage, *, contents: bool = True) -> StoreState:
    """Everything that the store says now, or its records alone. DataLoss: a damaged record or
    manifest, or one of a schema that is too new, or a record whose content is gone."""
    state = StoreState()
    for folder in ("steps", "deployments"):
        for name in storage.names(folder):
            _add_records(storage, state, f"{folder}/{name}")
    for name in storage.names("artifacts"):
        for alias in storage.names(f"artifacts/{name}/aliases"):
            _add_records(storage, state, f"artifacts/{name}/aliases/{alias}")
    wanted = set(storage.names("artifacts"))
    looked: set[tuple[str, int]] = set()
    while wanted:
        for name in sorted(wanted):
            _add_records(storage, state, f"artifacts/{name}/versions")
        for path in state.versions if contents else ():
            content = _content_of(state.records[path], path)
            if content not in state.contents and not _deleted_since(storage, state, content, path):
                state.contents[content] = _manifest(storage, content, path)
        wanted = _parents_not_seen(state, looked)
    return state


def _add_records(storage: Storage, state: StoreState, folder: str) -> None:
    for name in storage.names(folder):
        path = f"{folder}/{name}"
        if path not in state.records and RECORD.fullmatch(path):
            data = storage.read(path)
            parse_json(data, storage.uri(path), SCHEMA)
            state.records[path] = data.decode()


def _content_of(record: str, path: str) -> str:
    value = json.loads(record)
    content, name = str(value.get("content")), value.get("content_of", path.split("/")[1])
    if not _CONTENT.fullmatch(content) or content.split("/")[1] != name:
        raise DataLoss(f"{path} points to {content[:200]!r}", reason="RECORD_DAMAGED")
    return content


def _deleted_since(storage: Storage, state: StoreState, content: str, path: str) -> bool:
    """Whether the version has gone between two looks; then that is noted."""
    if MANIFEST in storage.names(content):
        return False
    folder, _, mark = _mark(path).rpartition("/")
    if mark not in storage.names(folder):
        return False
    state.records[_mark(path)] = storage.read(_mark(path)).decode()
    return True


def _manifest(storage: Storage, content: str, record: str) -> dict[str, Any]:
    try:
        data = storage.read(f"{content}/{MANIFEST}")
    except FileNotFoundError as error:
        raise DataLoss(
            f"{storage.uri(record)} names {content}, which is not there: restore it from an "
            "older backup first (`plinth restore --only store --merge-store`)",
            reason="ARTIFACT_DAMAGED",
        ) from error
    manifest = parse_json(data, storage.uri(f"{content}/{MANIFEST}"), SCHEMA)
    if content_digest(manifest["files"]) != manifest["digest"]:
        raise DataLoss(f"{storage.uri(content)}/{MANIFEST} is damaged", reason="ARTIFACT_DAMAGED")
    return manifest


def _parents_not_seen(state: StoreState, looked: set[tuple[str, int]]) -> set[str]:
    """Names whose versions must be listed again: parents that came between two listings. What
    is not there at the second look was deleted by hand."""
    missing = set()
    for manifest in state.contents.values():
        for parent in manifest["parents"]:
            try:
                reference = Reference.parse(parent)
            except InvalidArgument:
                continue
            version = reference.version or 0
            path = f"artifacts/{reference.name}/versions/{version:08d}.json"
            if version and path not in state.records and (reference.name, version) not in looked:
                looked.add((reference.name, version))
                missing.add(reference.name)
    return missing
