"""`--model REF`: from what a person names to a served model's desired state.

Writes the record on the store; the reconciler does the rest. Imports torch when a checkpoint has
to be converted, and only then.
"""

from __future__ import annotations

from pathlib import Path

from plinth.internal.v1 import deployments_pb2
from plinth.models.publish import import_model
from plinth.models.sources import DEFAULT_SOURCE, HUB_PREFIX, name_of
from plinth.shared.errors import FailedPrecondition
from plinth.shared.kinds import what_it_is
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import Settings
from plinth.shared.store import ArtifactRecord, ArtifactStore

DEFAULT = "default"


def serve_model(
    settings: Settings,
    reference: str,
    *,
    shards: int | None = None,
    max_shards: int | None = None,
) -> deployments_pb2.DeploymentRecord:
    """Wants `reference` served under its artifact's name. Blocks: an import takes seconds.

    reference: "default" (the packaged SmolLM2), a GGUF file, a Hugging Face folder, "hf:org/name",
    or an artifact on the store ("chat", "chat@3", "chat:prod"). A deployment that is wanted already
    keeps its options, and its shards unless `shards` and `max_shards` say otherwise.
    """
    store = ArtifactStore(settings.store())
    record = resolve(store, reference, settings.data_dir / "work")
    records = DeploymentRecords(store)
    before = records.get(record.name)
    wanted = deployments_pb2.DeploymentRecord(shards=1)
    if before is not None and before.deployment is not None:
        wanted.CopyFrom(before.deployment)
    wanted.name, wanted.artifact = record.name, record.ref
    if shards is not None:
        wanted.shards = shards
    if max_shards is not None:
        wanted.max_shards = max_shards
    put = records.put(wanted).deployment
    assert put is not None
    return put


def resolve(store: ArtifactStore, reference: str, workspace: Path) -> ArtifactRecord:
    """The model artifact that `reference` names, imported first if it is a checkpoint.

    A hub is asked once: what was imported from the same name before is served as it is, so that
    the next `up` needs no network. `plinth models import` takes what is newer.
    """
    if reference == DEFAULT:
        reference = DEFAULT_SOURCE
    if reference.startswith(HUB_PREFIX) and (known := _of_hub(store, reference)):
        return known
    if (
        reference == DEFAULT_SOURCE
        or reference.startswith(HUB_PREFIX)
        or Path(reference).expanduser().exists()
    ):
        return import_model(store, reference, name_of(reference), workspace=workspace)
    record = store.get(reference)
    if record.kind != "model":
        raise FailedPrecondition(f"only a model can be served; {what_it_is(record, store)}")
    return record


def _of_hub(store: ArtifactStore, source: str) -> ArtifactRecord | None:
    """The newest version that came from this name on the hub."""
    name = name_of(source)
    found = [
        record
        for record in store.list("model")
        if record.name == name and record.manifest["extra"].get("source") == source
    ]
    return max(found, key=lambda record: record.version, default=None)
