"""A tokenizer's folder, opened as it is served; import refuses by the same function what cannot be.

Only byte-pair vocabularies, and only decoders whose text can come in pieces: see `token_table`.
No torch, no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from plinth.shared.chat_template import chat_template
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.plain_text import (
    PlainText,
    open_tokenizer,
    read_description,
    read_object,
    token_content,
)
from plinth.shared.token_table import TokenTable, token_table

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class TokenizerFolder:
    """tokenizer.json (`description`) and what else its folder says.

    tokenizer parses special tokens in texts; plain knows none. token_names: "eos_token" → its text,
    for those of four roles that are named.
    """

    description: Mapping[str, Any]
    tokenizer: Tokenizer
    plain: PlainText
    table: TokenTable
    chat_template: str | None
    token_names: Mapping[str, str]


def open_tokenizer_folder(folder: Path) -> TokenizerFolder:
    """Raises NotFound (no tokenizer.json) and InvalidArgument (cannot be served, and why)."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise NotFound(f"{path}: no such file")
    description = read_description(folder)
    _check_kind(description["model"].get("type") or "BPE", path)
    tokenizer = open_tokenizer(description, str(path))
    _check_kind(type(tokenizer.model).__name__, path)  # old files name none
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise InvalidArgument(f"{path}: the vocabulary is empty")
    # A model may have more embeddings than its tokenizer has tokens, and could sample them.
    limit = max(_embeddings(folder), *(id_ + 1 for id_ in vocabulary.values()))
    table = token_table(vocabulary, description, limit, str(path))
    config = _optional_object(folder / "tokenizer_config.json")
    names = {name: token_content(config.get(name)) for name in _TOKEN_NAMES}
    return TokenizerFolder(
        description,
        tokenizer,
        PlainText(description, folder),
        table,
        chat_template(config, folder),
        {name: text for name, text in names.items() if text is not None},
    )


def _check_kind(kind: str, path: Path) -> None:
    if kind != "BPE":
        raise InvalidArgument(
            f"{path}: a {kind} vocabulary; only BPE (byte-level, or SentencePiece's with byte "
            "fallback) can be used",
            reason="UNKNOWN_VOCABULARY",
        )


def _embeddings(folder: Path) -> int:
    """How many the folder's model has; 0 where there is no model."""
    size = _optional_object(folder / "config.json").get("vocab_size") or 0
    if isinstance(size, bool) or not isinstance(size, int):
        raise InvalidArgument(
            f"{folder / 'config.json'}: vocab_size is {size!r:.80}, must be a whole number",
            field="vocab_size",
        )
    return size


def _optional_object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
