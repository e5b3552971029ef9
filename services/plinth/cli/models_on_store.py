"""`plinth models` on the store alone: where no stack is up, and in a pod that has the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plinth.shared.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from plinth.shared.settings import Settings
    from plinth.shared.store import ArtifactRecord, ArtifactStore

KINDS = ("model", "reward", "adapter")


@dataclass(frozen=True)
class Import:
    """What is to be imported, and how. base: of a PEFT adapter, what it is merged into."""

    source: str
    name: str
    revision: str | None = None
    base: str | None = None
    dtype: str = "keep"
    allow_other_base: bool = False


@dataclass(frozen=True)
class Imported:
    """What an import made. digest: of its weights."""

    ref: str
    digest: str
    source: str
    license: str
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Listed:
    """One version in `plinth models list`. family: its `model_type`; empty where nothing tells."""

    ref: str
    kind: str
    family: str
    base: str
    aliases: Sequence[str]
    source: str
    license: str
    created_unix_ms: int


@dataclass(frozen=True)
class Wanted:
    """What is to be served from now on. max_shards: 0 where their number does not change."""

    name: str
    artifact: str
    shards: int
    max_shards: int


class ModelsOnStore:
    """What `plinth models` does, on the store itself."""

    def __init__(self, settings: Settings) -> None:
        from plinth.shared.store import ArtifactStore

        self._settings = settings
        self.store: ArtifactStore = ArtifactStore(
            settings.store(), cache_dir=settings.data_dir / "cache"
        )

    def import_(self, asked: Import) -> Imported:
        from plinth.models.publish import import_adapter, import_model

        work = self._settings.data_dir / "work"
        if asked.base:
            record = import_adapter(
                self.store,
                Path(asked.source),
                asked.name,
                base=asked.base,
                workspace=work,
                dtype=asked.dtype,
                allow_other_base=asked.allow_other_base,
            )
        else:
            record = import_model(
                self.store,
                asked.source,
                asked.name,
                workspace=work,
                revision=asked.revision,
                dtype=asked.dtype,
            )
        return imported(record.ref, record.manifest, asked.source)

    def serve(self, source: str, shards: int | None, max_shards: int | None) -> Wanted:
        from plinth.cluster.serve_model import serve_model

        wanted = serve_model(self._settings, source, shards=shards, max_shards=max_shards)
        return Wanted(wanted.name, wanted.artifact, wanted.shards, wanted.max_shards)

    def stop(self, name: str) -> None:
        from plinth.shared.records import DeploymentRecords

        records = DeploymentRecords(self.store)
        try:
            records.delete(name)
        except NotFound as unknown:
            raise not_served(name, [one.name for one in records.list()], unknown) from unknown

    def listed(self) -> Iterator[Listed]:
        records = self.store.list()
        models = {record.ref for record in records if record.kind == "model"}
        told = {
            record.ref: (
                record.manifest.get("config") or {},
                next((ref for ref in record.parents if ref in models), ""),
            )
            for record in records
        }
        for record in records:
            if record.kind in KINDS:
                yield Listed(
                    record.ref,
                    record.kind,
                    family_of(record.ref, told),
                    told[record.ref][1],
                    self._aliases(record),
                    str(record.manifest["extra"].get("source") or ", ".join(record.parents)),
                    record.manifest["license"] or "",
                    record.created_unix_ms,
                )

    def shown(self, ref: str) -> dict[str, Any]:
        record = self.store.get(ref)
        facts = {"ref": record.ref, "uri": record.uri, "aliases": self._aliases(record)}
        return facts | record.manifest

    def alias(self, name: str, alias: str, target: str) -> str:
        record = self.store.get(target)
        check_target(f"{name}:{alias}", name, record.ref)
        self.store.set_alias(name, alias, record.version)
        return record.ref

    def delete(self, ref: str) -> None:
        from plinth.shared.records import DeploymentRecords

        served = DeploymentRecords(self.store).list()
        self.store.delete(
            ref,
            lambda record: [
                f"deployment {one.name}"
                for one in served
                if record.ref in (one.artifact, one.stable, one.speculation.removeprefix("draft:"))
            ],
        )

    def _aliases(self, record: ArtifactRecord) -> list[str]:
        aliases = self.store.aliases(record.name)
        return [alias for alias, version in aliases.items() if version == record.version]


def family_of(ref: str, told: Mapping[str, tuple[Mapping[str, Any], str]]) -> str:
    """Of a version, by what manifests tell: an import's config.json, a new model's shape, or those
    of what it was made of. told: version → (its manifest's config, its base)."""
    for _ in told:  # no chain is longer, unless a damaged manifest names itself
        config, base = told.get(ref, ({}, ""))
        new = config.get("model")
        said = new.get("family") if isinstance(new, Mapping) else config.get("model_type")
        if isinstance(said, str):
            return said
        ref = base
    return ""


def imported(ref: str, manifest: dict[str, Any], source: str) -> Imported:
    """As the manifest tells it."""
    extra = manifest["extra"]
    return Imported(
        ref,
        str(extra.get("weights_digest", manifest["digest"])),
        str(extra.get("source", source)),
        manifest["license"] or "",
        [str(warning) for warning in extra.get("warnings", ())],
    )


def check_target(alias: str, name: str, ref: str) -> None:
    if ref.partition("@")[0] != name:
        raise InvalidArgument(f"{alias} can only name a version of {name}, not {ref}")


def not_served(name: str, served: list[str], unknown: NotFound) -> NotFound:
    there = ", ".join(sorted(served)) or "nothing"
    return NotFound(f"{name!r} is not served; served is {there}", reason=unknown.reason)
