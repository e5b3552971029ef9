"""The artifact store: immutable, versioned folders with a manifest, and aliases that move.

Layout below the store's URL (schema 1):

    artifacts/<name>/content/<id>/…            files and manifest.json, written once
    artifacts/<name>/versions/00000003.json    created exclusively: makes a content version 3 (also
                                               a content of another name: `content_of`)
    artifacts/<name>/aliases/<alias>/00000002.json   created exclusively: the alias's second move

    artifacts/<name>/versions/00000003.deleted   version 3 was deleted; its number stays taken

An artifact exists when its version record does. What has none is not visible to anybody. All
calls block; from asyncio use `asyncio.to_thread`. Safe to share between threads and processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from plinth.shared import manifest as manifests
from plinth.shared.aliases import ANY, Alias, Aliases, Move
from plinth.shared.artifact_cache import ArtifactCache, verify_files
from plinth.shared.artifact_versions import ArtifactRecord, ArtifactVersions
from plinth.shared.errors import FailedPrecondition, NotFound
from plinth.shared.fencing import Fence
from plinth.shared.manifest import Reference, check_name
from plinth.shared.publishing import Publisher, chunks_of, now_ms
from plinth.shared.storage import Storage
from plinth.shared.storage_url import open_storage
from plinth.v1 import owner_pb2

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
        maker: Callable[[], owner_pb2.Owner] = owner_pb2.Owner,
    ) -> None:
        """`may_list`: whether whoever is being served may see, in an error, what else there is.
        maker: whose key whoever is being served has; what is published is theirs.
        FailedPrecondition: the backend at `url` can't create a file exclusively."""
        self._may_list, self._maker = may_list, maker
        self.storage: Storage = open_storage(url)
        self.url = self.storage.url
        self._cache = ArtifactCache(self.storage, cache_dir)
        self._versions = ArtifactVersions(self.storage)
        self._publisher = Publisher(self.storage, self._versions)
        self._aliases = Aliases(self.storage)
        self._fence: Fence | None = None

    def under(self, fence: Fence) -> ArtifactStore:
        """The same store, whose aliases are moved in the name of `fence`."""
        fenced = copy.copy(self)
        fenced._fence = fence
        return fenced

    def owned_by(self, owner: owner_pb2.Owner) -> ArtifactStore:
        """The same store; what is published there is `owner`'s."""
        owned = copy.copy(self)
        owned._maker = lambda: owner
        return owned

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
        self._publisher.check(name, kind)
        return self.publish_chunks(
            name,
            kind,
            chunks_of(manifests.source_files(Path(source))),
            about={
                "parents": list(parents),
                "config": dict(config or {}),
                "metrics": dict(metrics or {}),
                "data_digests": dict(data_digests or {}),
                "input_digest": input_digest,
                "license": license,
                "extra": dict(extra or {}),
            },
        )

    def publish_chunks(
        self,
        name: str,
        kind: str,
        files: Iterable[tuple[str, Iterable[bytes]]],
        *,
        about: Mapping[str, Any],
        check: Callable[[Mapping[str, Mapping[str, Any]]], None] = lambda _: None,
    ) -> ArtifactRecord:
        """The same from files as they come: see `Publisher.publish`."""
        return self._publisher.publish(name, kind, files, about, check, self._maker())

    def link(self, name: str, record: ArtifactRecord) -> ArtifactRecord:
        """Publishes what `record` is as the next version of `name` too; its files are not copied.
        A version of `name` that is the same stands. NotFound: `record` was deleted meanwhile."""
        owner = self._maker()
        made = {"created_unix_ms": now_ms(), "tenant": owner.tenant, "key_id": owner.key_id}
        return self._versions.link(name, record, vars(record) | made)

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
        return [record for record in self.each() if kind is None or record.kind == kind]

    def each(
        self, after: tuple[str, int] = ("", 0), damaged: Callable[[str], None] | None = None
    ) -> Iterator[ArtifactRecord]:
        """The same one by one. after: name and version of the one to go on behind. damaged: is told
        the reference of one that can't be read; left out, that is DataLoss."""
        for name in self._versions.names():
            if name >= after[0]:
                below = after[1] if name == after[0] else None
                yield from self.versions(name, below=below, damaged=damaged)

    def versions(
        self,
        name: str,
        *,
        below: int | None = None,
        damaged: Callable[[str], None] | None = None,
    ) -> Iterator[ArtifactRecord]:
        """Those of one artifact, newest first; `below` a number. damaged: as in `each`."""
        return self._versions.newest_first(name, below, damaged)

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

    # -- deleting --------------------------------------------------------------------------

    def delete(self, ref: str, in_use: Callable[[ArtifactRecord], Sequence[str]]) -> None:
        """Deletes one version ("chat@3"). Its number is not given again.

        in_use: what points to it, for people, beside aliases and other artifacts.
        FailedPrecondition (ARTIFACT_IN_USE) while anything does; NotFound.
        """
        record = self.get(ref)
        self._check_unused(record, in_use)
        if not self._versions.delete(record.name, record.version):
            self.get(ref)  # raises, unless it was undeleted by a rival that found it in use
        try:
            # What came to point there meanwhile has seen the version, or this sees that.
            kept = self._check_unused(record, in_use)
        except BaseException:
            self._versions.undelete(record.name, record.version)
            raise
        for path in self._versions.deleted_contents(record.name):
            if path not in kept:
                self.storage.remove_tree(path)

    def _check_unused(
        self, record: ArtifactRecord, in_use: Callable[[ArtifactRecord], Sequence[str]]
    ) -> set[str]:
        """Paths of all contents that there are. Reads the manifest of every artifact."""
        aliases = self._aliases.of(record.name)
        found = [f"alias {one.ref}" for one in aliases if one.version == record.version]
        paths = set()
        for one in self.each():
            paths.add(one.path)
            if record.ref in one.parents:
                found.append(f"artifact {one.ref}")
        found += in_use(record)
        if found:
            more = f" and {len(found) - 10} more" if len(found) > 10 else ""
            raise FailedPrecondition(
                f"{record.ref} is in use: {', '.join(found[:10])}{more}; delete or change those "
                "first",
                reason="ARTIFACT_IN_USE",
                field="name",
            )
        return paths

    # -- aliases ---------------------------------------------------------------------------

    def aliases(self, name: str) -> dict[str, int]:
        """alias → version, by alias."""
        return {alias.alias: alias.version for alias in self._aliases.of(name)}

    def each_alias(self, name: str, *, after: str = "") -> Iterator[Alias]:
        """The same one by one, behind the alias `after`."""
        return self._aliases.of(name, after)

    def alias(self, name: str, alias: str) -> Alias:
        """One of them. NotFound."""
        return self._aliases.get(name, alias)

    def set_alias(self, name: str, alias: str, version: int, *, expected: int | None = ANY) -> None:
        """Points `name:alias` to `version`.

        `expected`: the version that the alias must have now, None for no such alias yet; left
        out, the last caller wins. Aborted when it is another one. NotFound: no such version.
        Of a store `under` a fence: Aborted and FailedPrecondition as `fencing.admitted` says, and
        an alias that is there already is marked with the fence, so that no earlier run moves it.
        """
        check_name(alias, "alias")
        self.get(f"{name}@{version}")

        def there(number: int) -> bool:
            return number in self._versions.numbers(name)

        self._aliases.point(name, alias, version, expected, self._fence, there)

    def delete_alias(self, name: str, alias: str, *, expected: int | None = ANY) -> None:
        """`name:alias` names nothing more. NotFound if it does so already; Aborted as above."""
        self._aliases.get(name, alias)
        self._aliases.move(name, alias, Move.NONE, expected, self._fence)

    def claim_alias(self, name: str, alias: str) -> None:
        """Marks the alias with the leader's number and leaves it where it is: a leader that was
        deposed can't move it any more, any run can. Aborted: it is this one that was deposed."""
        self._aliases.move(name, alias, Move.CLAIM, ANY, self._fence)
