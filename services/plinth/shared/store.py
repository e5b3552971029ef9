"""The artifact store: immutable, versioned folders with a manifest, and aliases that move.

Layout below the store's URL (schema 1):

    artifacts/<name>/content/<id>/…            files and manifest.json, written once
    artifacts/<name>/versions/00000003.json    created exclusively: makes a content version 3 (also
                                               a content of another name: `content_of`)
    artifacts/<name>/aliases/<alias>/00000002.json   created exclusively: the alias's second move

An artifact exists when its version record does. What has none is not visible to anybody. All
calls block; from asyncio use `asyncio.to_thread`. Safe to share between threads and processes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeAlias

from plinth.shared import manifest as manifests
from plinth.shared.aliases import ANY, move_alias
from plinth.shared.artifact_cache import ArtifactCache, verify_files
from plinth.shared.artifact_versions import ArtifactRecord, ArtifactVersions, content_owner
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.fencing import Fence
from plinth.shared.manifest import MANIFEST, SCHEMA, Reference, check_name
from plinth.shared.record_log import RecordLog
from plinth.shared.storage import Storage, Tree
from plinth.shared.storage_url import open_storage
from plinth.shared.version import CODE_VERSION

__all__ = ["ArtifactRecord", "ArtifactStore"]

# (inside the class, `list` is the method)
Records: TypeAlias = list[ArtifactRecord]


class ArtifactStore:
    """Artifacts at one URL. `cache_dir` holds copies of what lies on a remote store."""

    def __init__(
        self,
        url: str,
        *,
        cache_dir: Path | None = None,
        may_list: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_list`: whether whoever is being served may see, in an error, what else there is.
        FailedPrecondition: the backend at `url` can't create a file exclusively."""
        self._may_list = may_list
        self.storage: Storage = open_storage(url)
        self.url = self.storage.url
        self._cache = ArtifactCache(self.storage, cache_dir)
        self._versions = ArtifactVersions(self.storage)
        self._alias_logs: dict[str, RecordLog] = {}  # what was read of them is kept
        self._fence: Fence | None = None

    def under(self, fence: Fence) -> ArtifactStore:
        """The same store, whose aliases are moved in the name of `fence`."""
        fenced = copy.copy(self)
        fenced._fence = fence
        return fenced

    # -- publishing ------------------------------------------------------------------------

    def publish(
        self,
        name: str,
        kind: str,
        source: Path,
        *,
        parents: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        data_digests: Mapping[str, str] | None = None,
        input_digest: str | None = None,
        license: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ArtifactRecord:
        """Copies the folder (or file) `source` into the store as the next version of `name`.

        The same content with the same `input_digest` as an existing version gives that version.
        ResourceExhausted on a full disk, with nothing left behind. InvalidArgument on links,
        special files and bad names.
        """
        check_name(name, "name")
        check_name(kind, "kind")
        self._sweep()
        files = manifests.source_files(Path(source))
        description: dict[str, Any] = {
            "plinth_schema": SCHEMA,
            "name": name,
            "kind": kind,
            "parents": list(parents),
            "config": dict(config or {}),
            "metrics": dict(metrics or {}),
            "data_digests": dict(data_digests or {}),
            "input_digest": input_digest,
            "license": license,
            "extra": dict(extra or {}),
            "code_version": CODE_VERSION,
            "created_unix_ms": _now(),
        }
        manifests.canonical_json(description)  # refuse what is no JSON before copying gigabytes
        path = f"artifacts/{name}/content/{token_hex(8)}-{token_hex(8)}"
        try:
            with self.storage.new_tree(path) as tree:
                description["files"] = _copy(tree, files)
                description["digest"] = manifests.content_digest(description["files"])
                tree.write(MANIFEST, [manifests.canonical_json(description)])
                tree.commit()
                record = self._versions.record(name, path, description, _same_as(description))
        except BaseException:
            self._sweep()
            raise
        if record.path != path:  # the same was published before
            self.storage.remove_tree(path)
        return record

    def link(self, name: str, record: ArtifactRecord) -> ArtifactRecord:
        """Publishes what `record` is as the next version of `name` too; its files are not copied.
        A version of `name` that is the same stands."""
        return self._versions.record(
            name,
            record.path,
            vars(record) | {"created_unix_ms": _now()},
            lambda there: (there.path, there.kind) == (record.path, record.kind),
        )

    def _sweep(self) -> None:
        """Removes what dead publishers committed without living to record it."""
        for path in self.storage.abandoned():
            name = content_owner(path)
            if name and all(path != record.path for record in self._versions.newest_first(name)):
                self.storage.remove_tree(path)

    # -- reading ---------------------------------------------------------------------------

    def get(self, ref: str) -> ArtifactRecord:
        """`name` (latest version), `name@7` or `name:prod`. NotFound says what there is."""
        reference = Reference.parse(ref)
        numbers = self._versions.numbers(reference.name)
        if not numbers:
            known = self._known(self._versions.names()[:20])
            raise NotFound(
                f"no artifact is called {reference.name!r}{known}",
                reason="ARTIFACT_NOT_FOUND",
                field="reference",
            )
        version = reference.version or numbers[-1]
        if reference.alias is not None:
            aliases = self.aliases(reference.name)
            if reference.alias not in aliases:
                known = self._known(list(aliases))
                raise NotFound(
                    f"{reference.name} has no alias {reference.alias!r}{known}",
                    reason="ALIAS_NOT_FOUND",
                    field="reference",
                )
            version = aliases[reference.alias]
        if version not in numbers:
            raise NotFound(
                f"{reference.name} has no version {version}"
                + (f"; the latest is {numbers[-1]}" if self._may_list() else ""),
                reason="VERSION_NOT_FOUND",
                field="reference",
            )
        return self._versions.load(reference.name, version)

    def list(self, kind: str | None = None) -> Records:
        """All versions of all artifacts (of one kind), by name, newest first."""
        return [
            record
            for name in self._versions.names()
            for record in self._versions.newest_first(name)
            if kind is None or record.kind == kind
        ]

    def find_by_input(self, name: str, input_digest: str) -> ArtifactRecord | None:
        """The newest version of `name` that was made from these inputs."""
        found = (r for r in self._versions.newest_first(name) if r.input_digest == input_digest)
        return next(found, None)

    def fetch(self, ref: str | ArtifactRecord) -> Path:
        """A local, read-only folder with the files: in place on file://, else a verified copy."""
        record = self.get(ref) if isinstance(ref, str) else ref
        return self._cache.folder(record.path, record.manifest)

    def verify(self, ref: str | ArtifactRecord) -> None:
        """Reads every file and compares digests. DataLoss names the first file that differs."""
        record = self.get(ref) if isinstance(ref, str) else ref
        verify_files(self.storage, record.path, record.manifest)

    def _known(self, names: Sequence[str]) -> str:
        if not self._may_list():
            return " (a key with the scope 'artifacts' may list them)"
        return f"; there is: {', '.join(names) or 'none'}"

    # -- aliases ---------------------------------------------------------------------------

    def aliases(self, name: str) -> dict[str, int]:
        """alias → version, by alias."""
        check_name(name, "name")
        found = {}
        for alias in self.storage.names(f"artifacts/{name}/aliases"):
            latest = self._moves(name, alias).latest()
            if latest is not None and latest[1]["version"] is not None:
                found[alias] = int(latest[1]["version"])
        return found

    def set_alias(self, name: str, alias: str, version: int, *, expected: int | None = ANY) -> None:
        """Points `name:alias` to `version`.

        `expected`: the version that the alias must have now, None for no such alias yet; left
        out, the last caller wins. Aborted when it is another one. NotFound: no such version.
        Of a store `under` a fence: Aborted and FailedPrecondition as `fencing.admitted` says, and
        an alias that is there already is marked with the fence, so that no earlier run moves it.
        """
        check_name(alias, "alias")
        self.get(f"{name}@{version}")
        move_alias(self._moves(name, alias), f"{name}:{alias}", version, expected, self._fence)

    def claim_alias(self, name: str, alias: str) -> None:
        """Marks the alias with the leader's number and leaves it where it is: a leader that was
        deposed can't move it any more, any run can. Aborted: it is this one that was deposed."""
        check_name(alias, "alias")
        move_alias(self._moves(name, alias), f"{name}:{alias}", None, ANY, self._fence)

    def _moves(self, name: str, alias: str) -> RecordLog:
        folder = f"artifacts/{check_name(name, 'name')}/aliases/{alias}"
        return self._alias_logs.setdefault(folder, RecordLog(self.storage, folder))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _same_as(description: Mapping[str, Any]) -> Callable[[ArtifactRecord], bool]:
    """Whether a version has this content, made from these inputs."""
    wanted = tuple(description[field] for field in ("digest", "input_digest", "kind"))
    return lambda there: (there.digest, there.input_digest, there.kind) == wanted


def _copy(tree: Tree, files: list[manifests.SourceFile]) -> dict[str, dict[str, Any]]:
    """Copies the files into the tree; path → size and digest of what was written."""
    entries = {}
    for file in files:
        try:
            with file.source.open("rb") as source:
                reader = manifests.HashingReader(source)
                tree.write(file.path, reader)
        except FileNotFoundError as error:
            raise InvalidArgument(
                f"{file.source} vanished while it was published", field="source"
            ) from error
        entries[file.path] = {"size": reader.size, "sha256": reader.sha256}
    return entries
