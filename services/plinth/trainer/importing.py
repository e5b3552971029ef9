"""Uploaded files made into a model: what `plinth models import` does, as a job."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from plinth.models.publish import import_adapter, import_model, is_adapter
from plinth.shared.api import enums
from plinth.shared.errors import InvalidArgument
from plinth.shared.manifest import MANIFEST
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.trainer.preparing import of_kind
from plinth.v1 import jobs_pb2 as pb

FILES = "files"
_MAX_ORIGIN = 200


def check_import(spec: pb.ImportSpec) -> None:
    """InvalidArgument for what can be told from the specification alone."""
    if not spec.files:
        raise _wrong("files", "is empty; name an artifact of uploaded files")
    if spec.allow_other_base and not spec.base:
        raise _wrong("allow_other_base", "is for an adapter, which names its base")
    for name, value in (("source", spec.source), ("revision", spec.revision)):
        if len(value) > _MAX_ORIGIN or not value.isprintable():
            raise _wrong(name, f"is at most {_MAX_ORIGIN} printable characters")


def _wrong(name: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{name}: {why}", field=f"spec.model_import.{name}")


def run_import(
    store: ArtifactStore,
    name: str,
    spec: pb.ImportSpec,
    workspace: Path,
    check_stop: Callable[[], None],
) -> ArtifactRecord:
    """The model `name`; found, if the same was imported before. workspace: a folder with room for
    the weights. Raises what `import_model` and `import_adapter` raise."""
    files = of_kind(store, spec.files, FILES)
    dtype = enums.word(pb.WeightType, spec.weight_type) or "keep"
    origin = {"source": spec.source or files.ref}
    if spec.revision:
        origin["revision"] = spec.revision
    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="source-", dir=workspace) as scratch:
        source = _source(store.fetch(files), Path(scratch) / files.name)
        check_stop()
        if spec.base:
            if not is_adapter(source):
                raise _wrong(
                    "base",
                    f"{files.ref} holds no PEFT adapter (with adapter_config.json), so it takes "
                    "none",
                )
            return import_adapter(
                store,
                source,
                name,
                base=spec.base,
                workspace=workspace,
                dtype=dtype,
                allow_other_base=spec.allow_other_base,
                origin=origin,
            )
        return import_model(
            store,
            str(source),
            name,
            workspace=workspace,
            dtype=dtype,
            origin=origin,
        )


def _source(content: Path, made: Path) -> Path:
    """The files as they were before they became an artifact, without its manifest: a folder of
    links, or the one file that there is."""
    paths = [path for path in content.rglob("*") if path.is_file()]
    paths = [path for path in paths if path.relative_to(content).as_posix() != MANIFEST]
    if len(paths) == 1 and paths[0].suffix == ".gguf":
        return paths[0]
    for path in paths:
        link = made / path.relative_to(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return made
