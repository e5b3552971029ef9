"""From a source to a model artifact on the store, once.

The store is any object of `plinth.shared.store.ArtifactStore`; nothing else of the platform is
known here, so that the CLI, the stack and a script import models in the same way.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from plinth.models.sources import source_digest
from plinth.shared.manifest import check_name
from plinth.shared.store import ArtifactRecord, ArtifactStore

# Part of every import's input digest: raise it when the same source gives other files.
_STEP = "models/import/1"


def import_model(
    store: ArtifactStore,
    source: str,
    name: str,
    *,
    workspace: Path,
    revision: str | None = None,
    token: str | None = None,
) -> ArtifactRecord:
    """The model artifact `name` made from `source`; what was imported before is found, not made.

    workspace: a directory with room for the weights while they are made. Raises what
    `import_source` and `ArtifactStore.publish` raise; nothing is left behind then.
    """
    check_name(name, "name")
    known = source_digest(source)
    if known and (record := store.find_by_input(name, input_digest(known))):
        return record
    from plinth.models.hf import read_config  # noqa: PLC0415  (torch)
    from plinth.models.importer import import_source  # noqa: PLC0415

    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=workspace) as staging:
        imported = import_source(source, Path(staging) / "model", revision=revision, token=token)
        return store.publish(
            name,
            "model",
            imported.folder,
            config=read_config(imported.folder).to_hf(),
            data_digests={"original": imported.original_digest},
            input_digest=input_digest(imported.original_digest),
            license=imported.license or None,
            extra=imported.metadata(),
        )


def input_digest(original: str) -> str:
    """What an import is found by: the original's digest and the step that made files of it."""
    return f"sha256:{hashlib.sha256(f'{_STEP} {original}'.encode()).hexdigest()}"
