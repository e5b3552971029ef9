"""Artifacts as the public API tells of them (artifacts.proto), from the store's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plinth.shared.aliases import Alias
from plinth.shared.api.enums import number, words
from plinth.shared.api.etags import etag_of
from plinth.shared.api.resource_names import Pattern
from plinth.shared.api.structs import struct
from plinth.shared.api.times import timestamp
from plinth.shared.artifact_versions import ArtifactRecord
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.manifest import Reference
from plinth.shared.store import ArtifactStore
from plinth.v1 import artifacts_pb2 as pb

ARTIFACT = Pattern("artifacts/{artifact}")
KINDS = frozenset(words(pb.ArtifactKind))


def reference_in(name: str, field: str = "name") -> Reference:
    """What "artifacts/chat@7" or "artifacts/chat:prod" names. InvalidArgument."""
    said = ARTIFACT.id(name, field)
    try:
        return Reference.parse(said)
    except InvalidArgument:
        raise InvalidArgument(
            f"{field}: {said[:140]!r} is no artifact: write artifacts/chat@7, artifacts/chat:prod "
            "or artifacts/chat",
            reason="RESOURCE_NAME",
            field=field,
        ) from None


def record_of(store: ArtifactStore, name: str, field: str = "name") -> ArtifactRecord:
    """The version that "artifacts/chat@7", "artifacts/chat:prod" or "artifacts/chat" names. Blocks.
    InvalidArgument, NotFound, DataLoss."""
    try:
        return store.get(str(reference_in(name, field)))
    except NotFound as missing:
        missing.field = field
        raise


def reference_of(artifact: pb.Artifact) -> str:
    """What specifications call it: "chat@7"."""
    return artifact.name.removeprefix("artifacts/")


def kind_of(artifact: pb.Artifact) -> str:
    """The store's word for its kind; empty for one that the API has no name for."""
    name = pb.ArtifactKind.Name(artifact.kind).removeprefix("ARTIFACT_KIND_")
    return "" if name == "UNSPECIFIED" else name.lower()


def artifact_message(
    record: ArtifactRecord, aliases: Sequence[str] = (), *, manifest: bool = True
) -> pb.Artifact:
    """manifest: whether to say how it was made."""
    files = record.manifest["files"].values()
    message = pb.Artifact(
        name=ARTIFACT.name(record.ref),
        artifact_id=record.name,
        version=record.version,
        kind=number(pb.ArtifactKind, record.kind) if record.kind in KINDS else 0,  # type: ignore[arg-type]
        digest=record.digest,
        uri=record.uri,
        parents=record.parents,
        aliases=aliases,
        create_time=timestamp(record.created_unix_ms),
        owner=record.owner if record.tenant else None,
        size_bytes=sum(int(file["size"]) for file in files),
        file_count=len(files),
    )
    if manifest:
        message.manifest.CopyFrom(_manifest(record.manifest))
    return message


def alias_message(alias: Alias) -> pb.Alias:
    return pb.Alias(
        name=ARTIFACT.name(alias.ref),
        artifact=ARTIFACT.name(f"{alias.name}@{alias.version}"),
        etag=alias_etag(alias),
        update_time=timestamp(alias.moved_unix_ms),
    )


def alias_etag(alias: Alias) -> str:
    return etag_of(alias.ref, str(alias.version))


def _manifest(found: Mapping[str, Any]) -> pb.ArtifactManifest:
    return pb.ArtifactManifest(
        config=struct(found.get("config")),
        metrics=struct(found.get("metrics")),
        extra=struct(found.get("extra")),
        data_digests=found.get("data_digests") or {},
        input_digest=found.get("input_digest") or "",
        license=found.get("license") or "",
        code_version=str(found.get("code_version") or ""),
    )
