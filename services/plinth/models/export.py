"""From an artifact on the store to a folder that others open: `export_artifact` is the whole path.

    model      config.json, safetensors, tokenizer: transformers' AutoModelForCausalLM,
               llama.cpp's convert_hf_to_gguf.py
    reward     the same for AutoModelForSequenceClassification, one label
    adapter    adapter_config.json, adapter_model.safetensors: PEFT's AutoPeftModel…; it names its
               base so that PEFT finds it, or is merged into it

The types of the weights are those on the store, unless another is asked for. A model card
(README.md) says where it came from, as the hub's do. The folder appears whole or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from plinth.models import sharded
from plinth.models.adapters.base import read_stop_ids
from plinth.models.adapters.merging import merge
from plinth.models.adapters.peft_format import CONFIG as ADAPTER_CONFIG
from plinth.models.adapters.peft_format import WEIGHTS as ADAPTER_WEIGHTS
from plinth.models.dtypes import long_name, short_name
from plinth.models.hf.folder import INDEX, read_json
from plinth.models.inherited_settings import add_ends, pad_apart
from plinth.models.model_card import write_card
from plinth.models.sources import HUB_PREFIX
from plinth.models.weights import write_json
from plinth.models.whole_folder import appearing, check_space, check_target
from plinth.shared.errors import DataLoss, InvalidArgument
from plinth.shared.kinds import a_kind
from plinth.shared.manifest import MANIFEST
from plinth.shared.store import ArtifactRecord, ArtifactStore

KINDS = ("model", "reward", "adapter")
BASE_FOLDER = "base"
SHARD_SIZE = "5GB"  # as huggingface_hub's
_MARGIN = 1 << 20  # headers, an index, a card


@dataclass(frozen=True)
class ExportOptions:
    """dtype: None keeps the store's. max_shard_size: "5GB", as in transformers.

    merge, with_base, base_name: of an adapter, one of them at most; base_name is what its file
    calls the base, a hub's name or a path.
    """

    dtype: torch.dtype | None = None
    max_shard_size: str = SHARD_SIZE
    merge: bool = False
    with_base: bool = False
    base_name: str = ""
    force: bool = False


@dataclass(frozen=True)
class Exported:
    """What was made. kind: of what lies there ("model" for a merged adapter); base: what an adapter
    calls its base; dtype: of the weights, short; size: bytes of all files."""

    folder: Path
    ref: str
    kind: str
    dtype: str
    size: int
    base: str = ""
    warnings: tuple[str, ...] = ()


def export_artifact(
    store: ArtifactStore, reference: str, out: Path, options: ExportOptions, *, workspace: Path
) -> Exported:
    """Make `out` a folder of the artifact. workspace: for a model that is merged first.

    Raises what the store raises, AlreadyExists and FailedPrecondition (`out` holds something),
    ResourceExhausted (no room), InvalidArgument (options that do not fit the artifact; a number
    that the type can't hold). Nothing is left behind then, and what was there stays.
    """
    record = store.get(reference)
    _check_options(record, options)
    out = out.expanduser().resolve()
    check_target(out, force=options.force)
    if record.kind != "adapter":
        return _export_model(store.fetch(record), record, record.kind, out, options)
    base = base_of(store, record)
    if not options.merge:
        return _export_adapter(store, record, base, out, options)
    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export-", dir=workspace) as staging:
        made = Path(staging) / "model"
        base_folder = store.fetch(base)
        check_space(made, _merged_size(base_folder, options.dtype))
        kind, warnings = merge(
            base_folder,
            base,
            store.fetch(record),
            made,
            dtype=options.dtype,
            allow_other_base=None,
        )
        done = _export_model(made, record, kind, out, options, base)
        return replace(done, warnings=tuple(warnings))


def base_of(store: ArtifactStore, adapter: ArtifactRecord) -> ArtifactRecord:
    """The model that an adapter artifact was trained on, as its lineage says.

    Raises InvalidArgument where it says none, DataLoss where it is not the same any more.
    """
    digests = adapter.manifest["data_digests"]
    for parent in adapter.parents:
        record = store.get(parent)
        if record.kind == "model":
            if digests.get(parent, record.digest) != record.digest:
                raise DataLoss(f"{adapter.ref}: its base {parent} has another content now")
            return record
    raise InvalidArgument(f"{adapter.ref}: none of its parents is a model, so its base is unknown")


def _check_options(record: ArtifactRecord, options: ExportOptions) -> None:
    if record.kind not in KINDS:
        raise InvalidArgument(
            f"{record.ref} is {a_kind(record.kind)}; of the kinds {', '.join(KINDS)} one can be "
            "exported",
            field="reference",
        )
    asked = {
        "--merge": options.merge,
        "--with-base": options.with_base,
        "--base-name": bool(options.base_name),
    }
    given = [name for name, is_asked in asked.items() if is_asked]
    if given and record.kind != "adapter":
        raise InvalidArgument(
            f"{given[0]} is for an adapter; {record.ref} is {a_kind(record.kind)}, and whole",
            field=given[0],
        )
    if len(given) > 1:
        raise InvalidArgument(f"{' and '.join(given)}: choose one of them", field=given[1])
    sharded.check_shard_size(options.max_shard_size)


# -- models and reward models ----------------------------------------------------------------------


def _export_model(
    source: Path,
    record: ArtifactRecord,
    kind: str,
    out: Path,
    options: ExportOptions,
    base: ArtifactRecord | None = None,
) -> Exported:
    """base: what an adapter was merged into, for the card."""
    tensors = sharded.model_tensors(source, options.dtype)
    check_space(out, sharded.size_of(tensors) + _size_of(_others(source)) + _MARGIN)
    with appearing(out) as made:
        _write_model(source, tensors, made, options)
        write_card(made, record, base)
        size = _size_of(made.rglob("*"))
    return Exported(out, record.ref, kind, short_name(sharded.dtype_of(tensors)), size)


def _write_model(
    source: Path, tensors: dict[str, sharded.Stored], made: Path, options: ExportOptions
) -> None:
    for file in _others(source):
        (made / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, made / file.relative_to(source))
    config = read_json(source / "config.json")
    config.pop("torch_dtype", None)  # its older name
    write_json(made / "config.json", config | {"dtype": long_name(sharded.dtype_of(tensors))})
    sharded.write_shards(tensors, made, options.max_shard_size)


def _merged_size(base: Path, dtype: torch.dtype | None) -> int:
    return sharded.size_of(sharded.model_tensors(base, dtype)) + _size_of(_others(base)) + _MARGIN


def _others(source: Path) -> list[Path]:
    """All that is copied as it is: no weights, and not what they say of themselves."""
    skipped = (MANIFEST, "config.json", INDEX)
    return [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and path.suffix != ".safetensors" and path.name not in skipped
    ]


def _size_of(files: Any) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


# -- adapters --------------------------------------------------------------------------------------


def _export_adapter(
    store: ArtifactStore,
    record: ArtifactRecord,
    base: ArtifactRecord,
    out: Path,
    options: ExportOptions,
) -> Exported:
    source = store.fetch(record)
    config = read_json(source / ADAPTER_CONFIG) | _base_fields(record, base, out, options)
    tensors = sharded.stored_tensors([source / ADAPTER_WEIGHTS], options.dtype)
    needed = sharded.size_of(tensors) + _size_of(_others(source)) + _MARGIN
    base_source = store.fetch(base) if options.with_base else None
    if base_source is not None:
        base_tensors = sharded.model_tensors(base_source, options.dtype)
        needed += sharded.size_of(base_tensors) + _size_of(_others(base_source))
    check_space(out, needed)
    with appearing(out) as made:
        for file in _others(source):
            shutil.copyfile(file, made / file.name)
        write_json(made / ADAPTER_CONFIG, config)
        sharded.write_file(tensors, sorted(tensors), made / ADAPTER_WEIGHTS)
        if base_source is not None:
            (made / BASE_FOLDER).mkdir()
            _write_model(base_source, base_tensors, made / BASE_FOLDER, options)
            _for_adapter(made / BASE_FOLDER, read_stop_ids(source), config)
            write_card(made / BASE_FOLDER, base)
        write_card(made, record, base)
        size = _size_of(made.rglob("*"))
    dtype = short_name(sharded.dtype_of(tensors))
    named = str(config["base_model_name_or_path"])
    return Exported(out, record.ref, "adapter", dtype, size, base=named)


def _base_fields(
    record: ArtifactRecord, base: ArtifactRecord, out: Path, options: ExportOptions
) -> dict[str, Any]:
    """How the adapter calls its base: PEFT takes it for a path seen from where Python runs, then
    for a hub's name. So a path is absolute."""
    if options.with_base:
        return {"base_model_name_or_path": str(out / BASE_FOLDER), "revision": None}
    if options.base_name:
        return {"base_model_name_or_path": options.base_name, "revision": None}
    if hub := hub_name(base.manifest):
        revision = base.manifest["extra"].get("revision") or None
        return {"base_model_name_or_path": hub, "revision": revision}
    raise InvalidArgument(
        f"{record.ref}: its base {base.ref} did not come from a hub, so PEFT can't find it by a "
        "name. Say --with-base to export it along, --base-name PATH_OR_HUB_NAME where it lies "
        "already, or --merge for one whole model",
        reason="BASE_NOT_FOUND",
        field="reference",
    )


def hub_name(manifest: Mapping[str, Any]) -> str:
    """ "org/name" of what was imported from a hub unchanged, else empty."""
    source = str(manifest["extra"].get("source") or "")
    return source.removeprefix(HUB_PREFIX).partition("@")[0] if source.startswith("hf:") else ""


def _for_adapter(base: Path, stop_ids: Sequence[int], adapter: Mapping[str, Any]) -> None:
    """PEFT takes all but the maps of an adapter from the base's folder: what ends an answer too.

    A reward adapter's base is opened as a sequence classifier, of as many labels as config.json
    says (2 unless it does), which pads as a reward model must; opened as a causal model it is the
    same."""
    add_ends(base, stop_ids)
    if adapter.get("task_type") != "SEQ_CLS":
        return
    pad_apart(base, next(iter(stop_ids), None))
    path = base / "config.json"
    write_json(path, read_json(path) | {"id2label": {"0": "reward"}, "label2id": {"reward": 0}})
