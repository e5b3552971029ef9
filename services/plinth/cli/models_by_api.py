"""`plinth models` through a gateway's gRPC API: on any machine, with a key, without the store."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plinth.cli.models_on_store import (
    KINDS,
    Import,
    Imported,
    Listed,
    Wanted,
    check_target,
    family_of,
    imported,
    not_served,
)
from plinth.models.publish import input_digest
from plinth.models.sources import DEFAULT_SOURCE, HUB_PREFIX, locate, name_of, source_digest
from plinth.shared.api import enums
from plinth.shared.api.structs import plain_values
from plinth.shared.api.times import unix_ms
from plinth.shared.artifact_messages import kind_of, reference_of
from plinth.shared.artifact_versions import ArtifactRecord
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.kinds import what_it_is
from plinth.shared.manifest import SCHEMA, check_name, parse_json
from plinth.v1 import artifacts_pb2, deployments_pb2, jobs_pb2

if TYPE_CHECKING:
    from plinth.client import Client
    from plinth.shared.settings import Settings

_FILES_SUFFIX = "-files"
_MOST_NAME = 64


@dataclass(frozen=True)
class _Source:
    """Files that make a model. label, revision: where they came from."""

    files: dict[str, Path]
    label: str
    revision: str = ""


class RemoteStore:
    """Artifacts that are read through the API, as the store gives them: `get` and `fetch`."""

    def __init__(self, plinth: Client, cache: Path) -> None:
        self._plinth, self._cache = plinth, cache

    def get(self, ref: str) -> ArtifactRecord:
        from plinth.client.transfers import read

        artifact = self._plinth.artifacts.get_artifact(f"artifacts/{ref}")
        data = read(self._plinth, artifact.name, "manifest.json")
        manifest = parse_json(data, f"the manifest of {reference_of(artifact)}", SCHEMA)
        return ArtifactRecord(
            name=artifact.artifact_id,
            version=artifact.version,
            kind=kind_of(artifact) or manifest["kind"],
            digest=artifact.digest,
            uri=artifact.uri,
            parents=tuple(artifact.parents),
            manifest=manifest,
            created_unix_ms=unix_ms(artifact.create_time),
            input_digest=manifest.get("input_digest"),
        )

    def fetch(self, record: ArtifactRecord) -> Path:
        """A local copy; what of it came before stays."""
        from plinth.client.transfers import download

        folder = self._cache / record.digest.removeprefix("sha256:")
        download(self._plinth, f"artifacts/{record.ref}", folder)
        return folder


class ModelsByApi:
    """What `plinth models` does, with a client and a key."""

    def __init__(self, plinth: Client, settings: Settings) -> None:
        self._plinth, self._settings = plinth, settings
        self.store: Any = RemoteStore(plinth, settings.data_dir / "cache" / "downloads")

    # -- importing -------------------------------------------------------------------------

    def import_(self, asked: Import) -> Imported:
        check_name(asked.name, "name")
        known = None if asked.base else source_digest(asked.source)
        if known and (there := self._made_from(asked.name, input_digest(known, dtype=asked.dtype))):
            return self._imported(there, asked.source)
        with self._source(asked) as source:
            ref = self._made(asked, source)
        return self._imported(ref, asked.source)

    def _made(self, asked: Import, source: _Source) -> str:
        """Uploads the files, has a model made of them, and removes them."""
        from plinth.client.transfers import upload

        name = f"{asked.name[: _MOST_NAME - len(_FILES_SUFFIX)]}{_FILES_SUFFIX}"
        files = upload(self._plinth, source.files, name)
        weights: Any = enums.number(
            jobs_pb2.WeightType, "" if asked.dtype == "keep" else asked.dtype, "--dtype"
        )
        spec = jobs_pb2.ImportSpec(
            files=reference_of(files),
            base=asked.base or "",
            weight_type=weights,
            allow_other_base=asked.allow_other_base,
            source=source.label,
            revision=source.revision,
        )
        try:
            return self._job(jobs_pb2.JobSpec(output_name=asked.name, model_import=spec))
        finally:
            with suppress(FailedPrecondition, NotFound):  # another import of the same needs them
                self._plinth.artifacts.delete_artifact(files.name)

    def _job(self, spec: jobs_pb2.JobSpec) -> str:
        """What a job published."""
        job_id = f"import-{spec.output_name}-{secrets.token_hex(8)}"
        job = self._plinth.jobs.create_job(job_id, job=jobs_pb2.Job(spec=spec))
        for response in self._plinth.jobs.watch_job(job.name):
            if response.HasField("job"):  # else a heartbeat
                job = response.job
        status = job.status
        if status.state == jobs_pb2.JOB_STATE_SUCCEEDED:
            return status.artifact.removeprefix("artifacts/")
        raise FailedPrecondition(status.error or "the import was cancelled", reason="JOB_FAILED")

    @contextmanager
    def _source(self, asked: Import) -> Iterator[_Source]:
        kind, place = locate(asked.source)
        if kind != "hub":
            label = asked.source if asked.source == DEFAULT_SOURCE else place.name
            yield _Source(_files_of(place), label)
            return
        from plinth.models.hub import download, parse_hub_name

        repository, written = parse_hub_name(asked.source)
        work = self._settings.data_dir / "work"
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="hub-", dir=work) as scratch:
            found = download(repository, asked.revision or written, None, Path(scratch))
            yield _Source(_files_of(found.folder), asked.source, found.commit)

    def _imported(self, ref: str, source: str) -> Imported:
        return imported(ref, self.store.get(ref).manifest, source)

    def _made_from(self, name: str, digest: str) -> str:
        """The newest version that was made from these inputs; empty without one."""
        found = (one for one in self._versions(name) if one.manifest.input_digest == digest)
        return next((reference_of(one) for one in found), "")

    def _versions(self, name: str) -> Iterator[artifacts_pb2.Artifact]:
        """Of one artifact, newest first, with their manifests."""
        yield from self._plinth.artifacts.list_artifacts(
            filter=f'artifact_id = "{name}"', view=artifacts_pb2.ARTIFACT_VIEW_FULL
        )

    # -- serving ---------------------------------------------------------------------------

    def serve(self, source: str, shards: int | None, max_shards: int | None) -> Wanted:
        artifact = self._to_serve(source)
        asked = {"shards": shards, "max_shards": max_shards}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        spec = deployments_pb2.DeploymentSpec(artifact=artifact, **given)
        name = artifact.partition("@")[0]
        put = self._plinth.deployments.update_deployment(
            deployments_pb2.Deployment(name=f"deployments/{name}", spec=spec),
            update_mask=[f"spec.{field}" for field in ("artifact", *given)],
            allow_missing=True,
        )
        return Wanted(name, put.spec.artifact, put.spec.shards, put.spec.max_shards)

    def _to_serve(self, source: str) -> str:
        """The model that is meant, imported first if it is a checkpoint."""
        source = DEFAULT_SOURCE if source == "default" else source
        if source.startswith(HUB_PREFIX):
            for one in self._versions(name_of(source)):
                if one.manifest.extra.fields["source"].string_value == source:
                    return reference_of(one)
        if (
            source == DEFAULT_SOURCE
            or source.startswith(HUB_PREFIX)
            or Path(source).expanduser().exists()
        ):
            return self.import_(Import(source, name_of(source))).ref
        record = self.store.get(source)
        if record.kind != "model":
            what = what_it_is(record, self.store)
            raise FailedPrecondition(f"only a model can be served; {what}")
        return str(record.ref)

    def stop(self, name: str) -> None:
        try:
            self._plinth.deployments.delete_deployment(f"deployments/{name}")
        except NotFound as unknown:
            served = [
                one.name.rpartition("/")[2] for one in self._plinth.deployments.list_deployments()
            ]
            raise not_served(name, served, unknown) from unknown

    # -- telling ---------------------------------------------------------------------------

    def listed(self) -> Iterator[Listed]:
        found = [
            one
            for kind in KINDS
            for one in self._plinth.artifacts.list_artifacts(
                filter=f"kind = {kind.upper()}", view=artifacts_pb2.ARTIFACT_VIEW_FULL
            )
        ]
        models = {reference_of(one) for one in found if kind_of(one) == "model"}
        told = {
            reference_of(one): (
                plain_values(one.manifest.config),
                next((ref for ref in one.parents if ref in models), ""),
            )
            for one in found
        }
        for one in sorted(found, key=lambda one: (one.artifact_id, -one.version)):
            source = one.manifest.extra.fields["source"].string_value
            ref = reference_of(one)
            yield Listed(
                ref,
                kind_of(one),
                family_of(ref, told),
                told[ref][1],
                one.aliases,
                source or ", ".join(one.parents),
                one.manifest.license,
                unix_ms(one.create_time),
            )

    def shown(self, ref: str) -> dict[str, Any]:
        artifact = self._plinth.artifacts.get_artifact(f"artifacts/{ref}")
        record: ArtifactRecord = self.store.get(reference_of(artifact))
        facts: dict[str, Any] = {
            "ref": record.ref,
            "uri": record.uri,
            "aliases": list(artifact.aliases),
        }
        return facts | record.manifest

    def alias(self, name: str, alias: str, target: str) -> str:
        artifact = self._plinth.artifacts.get_artifact(f"artifacts/{target}")
        check_target(f"{name}:{alias}", name, reference_of(artifact))
        self._plinth.artifacts.set_alias(
            artifacts_pb2.Alias(name=f"artifacts/{name}:{alias}", artifact=artifact.name)
        )
        return reference_of(artifact)

    def delete(self, ref: str) -> None:
        self._plinth.artifacts.delete_artifact(f"artifacts/{ref}")


def _files_of(place: Path) -> dict[str, Path]:
    """Of a model's or an adapter's folder what an import reads, and never code or pickles."""
    from plinth.models.hub import ALLOWED

    if place.is_file():
        return {place.name: place}
    files = {file.name: file for pattern in ALLOWED for file in place.glob(pattern)}
    files = {name: file for name, file in sorted(files.items()) if file.is_file()}
    if not files:
        raise InvalidArgument(f"{place} holds no model: no configuration, no safetensors")
    return files
