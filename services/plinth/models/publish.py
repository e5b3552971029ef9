"""From a source to a model artifact on the store, once.

The store is any object of `plinth.shared.store.ArtifactStore`; nothing else of the platform is
known here, so that the CLI, the stack and a script import models in the same way.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from plinth.models import hf_config
from plinth.models.sources import folder_digest, source_digest
from plinth.shared.errors import InvalidArgument
from plinth.shared.manifest import check_name
from plinth.shared.store import ArtifactRecord, ArtifactStore

# Part of every import's input digest: raise it when the same source gives other files.
_STEP = "models/import/2"
# Files of a base that a merged model has of its own.
_REPLACED = ("manifest.json", "config.json", "*.safetensors", "*.safetensors.index.json")


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
            config=hf_config.to_hf(read_config(imported.folder)),
            data_digests={"original": imported.original_digest},
            input_digest=input_digest(imported.original_digest),
            license=imported.license or None,
            extra=imported.metadata(),
        )


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter in PEFT's format."""
    return (folder / "adapter_config.json").is_file()


def import_adapter(
    store: ArtifactStore, folder: Path, name: str, *, base: str, workspace: Path
) -> ArtifactRecord:
    """The model artifact `name`: the adapter in `folder` (PEFT's format), merged into `base`.

    base: reference of a model artifact. The result is float32, with the base's tokenizer; it is
    found, not made, when this adapter was merged into this base before. Raises what
    `read_adapter`, `put_on` and the store raise; nothing is left behind then.
    """
    check_name(name, "name")
    record = store.get(base)
    if record.kind != "model":
        raise InvalidArgument(f"{record.ref} is a {record.kind}, not a model", field="base")
    original = folder_digest(folder)
    known = input_digest(f"{original} on {record.digest}")
    if found := store.find_by_input(name, known):
        return found
    from plinth.models.hf import read_json  # noqa: PLC0415  (torch)
    from plinth.models.peft_format import put_on, read_adapter  # noqa: PLC0415
    from plinth.models.weights import (  # noqa: PLC0415
        load_decoder,
        save_decoder,
        weights_digest,
        write_json,
    )

    base_folder = store.fetch(record)
    decoder = load_decoder(base_folder)
    put_on(decoder, read_adapter(folder), str(folder))
    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=workspace) as staging:
        made = Path(staging) / "model"
        shutil.copytree(base_folder, made, ignore=shutil.ignore_patterns(*_REPLACED))
        save_decoder(decoder, made)
        kept = base_folder / "generation_config.json"
        if kept.is_file():
            write_json(made / kept.name, read_json(kept) | read_json(made / kept.name))
        return store.publish(
            name,
            "model",
            made,
            parents=[record.ref],
            config=hf_config.to_hf(decoder.config),
            data_digests={"original": original, record.ref: record.digest},
            input_digest=known,
            license=record.manifest.get("license"),
            extra={
                "source": folder.name,
                "format": "peft",
                "original_digest": original,
                "weights_digest": weights_digest(made),
            },
        )


def input_digest(original: str) -> str:
    """What an import is found by: the original's digest and the step that made files of it."""
    return f"sha256:{hashlib.sha256(f'{_STEP} {original}'.encode()).hexdigest()}"
