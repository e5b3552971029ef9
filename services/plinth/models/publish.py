"""From a source to a model artifact on the store, once.

The store is any object of `plinth.shared.store.ArtifactStore`; nothing else of the platform is
known here, so that the CLI, the stack and a script import models in the same way.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from plinth.models.hf import config as hf_config
from plinth.models.sources import folder_digest, source_digest
from plinth.shared.errors import InvalidArgument
from plinth.shared.kinds import what_it_is
from plinth.shared.manifest import check_name
from plinth.shared.private_folders import make_private
from plinth.shared.store import ArtifactRecord, ArtifactStore

# Part of every import's input digest: raise it when the same source gives other files.
NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})
_STEP, _MERGE = "models/import/3", "models/merge/5"


def import_model(
    store: ArtifactStore,
    source: str,
    name: str,
    *,
    workspace: Path,
    revision: str | None = None,
    token: str | None = None,
    dtype: str = "keep",
    origin: Mapping[str, str] = NOWHERE,
) -> ArtifactRecord:
    """The artifact `name` made from `source`, a model or a reward model; what was imported before
    is found, not made.

    origin: "source" and "revision" for the manifest, where `source` is a copy of what lies there.

    workspace: a directory with room for the weights while they are made. dtype: what they are
    stored in, see `dtypes.parse_dtype`; what is tuned from the model keeps it. Raises what
    `import_source` and `ArtifactStore.publish` raise; nothing is left behind then.
    """
    check_name(name, "name")
    known = source_digest(source)
    if known and (record := store.find_by_input(name, input_digest(known, dtype=dtype))):
        return record
    from plinth.models.dtypes import parse_dtype  # noqa: PLC0415  (torch)
    from plinth.models.hf.folder import read_config  # noqa: PLC0415
    from plinth.models.importer import import_source  # noqa: PLC0415

    make_private(workspace)
    with tempfile.TemporaryDirectory(prefix="import-", dir=workspace) as staging:
        imported = import_source(
            source,
            Path(staging) / "model",
            revision=revision,
            token=token,
            dtype=parse_dtype(dtype),
        )
        return store.publish(
            name,
            imported.kind,
            imported.folder,
            config=hf_config.to_hf(read_config(imported.folder)),
            data_digests={"original": imported.original_digest},
            input_digest=input_digest(imported.original_digest, dtype=dtype),
            license=imported.license or None,
            extra=imported.metadata() | dict(origin),
        )


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter in PEFT's format."""
    return (folder / "adapter_config.json").is_file()


def import_adapter(
    store: ArtifactStore,
    folder: Path,
    name: str,
    *,
    base: str,
    workspace: Path,
    dtype: str = "keep",
    allow_other_base: bool = False,
    origin: Mapping[str, str] = NOWHERE,
) -> ArtifactRecord:
    """The artifact `name`: the adapter in `folder` (PEFT's format), merged into `base`; a model, or
    a reward model where it has such a head.

    base: reference of a model artifact, whose tokenizer and types the result has. dtype: see
    `dtypes.parse_dtype`. origin: as in `import_model`. The result is found, not made, when
    this adapter was merged into this base before. Raises what `merging.merge` and the store raise;
    nothing is left behind then.
    """
    check_name(name, "name")
    record = store.get(base)
    if record.kind != "model":
        raise InvalidArgument(f"a model is wanted; {what_it_is(record, store)}", field="base")
    original = folder_digest(folder)
    onto = f"{record.digest}, whatever it is" if allow_other_base else record.digest
    known = input_digest(f"{original} on {onto}", _MERGE, dtype)
    if found := store.find_by_input(name, known):
        return found
    from plinth.models.adapters.merging import merge  # noqa: PLC0415
    from plinth.models.dtypes import parse_dtype  # noqa: PLC0415  (torch)
    from plinth.models.hf.folder import read_config  # noqa: PLC0415
    from plinth.models.weights import weights_digest  # noqa: PLC0415

    kept_or = parse_dtype(dtype)
    make_private(workspace)
    with tempfile.TemporaryDirectory(prefix="import-", dir=workspace) as staging:
        made = Path(staging) / "model"
        kind, warnings = merge(
            store.fetch(record),
            record,
            folder,
            made,
            dtype=kept_or,
            allow_other_base=allow_other_base,
        )
        return store.publish(
            name,
            kind,
            made,
            parents=[record.ref],
            config=hf_config.to_hf(read_config(made)),
            data_digests={"original": original, record.ref: record.digest},
            input_digest=known,
            license=record.manifest.get("license"),
            extra={
                "source": folder.name,
                "format": "peft",
                "original_digest": original,
                "weights_digest": weights_digest(made),
                "warnings": warnings,
                **origin,
            },
        )


def input_digest(original: str, step: str = _STEP, dtype: str = "keep") -> str:
    """What an import is found by: the original's digest and the step that made files of it."""
    asked = "" if dtype == "keep" else f" in {dtype}"
    return f"sha256:{hashlib.sha256(f'{step} {original}{asked}'.encode()).hexdigest()}"
