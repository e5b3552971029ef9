"""Text to ids and back for one tokenizer, and a tokenizer's own facts.

Text from users never turns into special tokens: where it spells one, it is encoded by a twin of the
tokenizer that knows none. Blocking and thread-safe; knows neither gRPC nor artifacts. Only the
decoders in `detokenizer` are known, since streaming must equal decoding at once.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from plinth.shared.errors import InvalidArgument, NotFound
from plinth.tokenizer.detokenizer import Detokenizer, token_table

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt. `trusted`: special tokens spelled in it are meant as such."""

    text: str
    trusted: bool


class Codec:
    """One tokenizer folder, opened."""

    def __init__(self, folder: Path) -> None:
        """Raises NotFound (no tokenizer.json) and InvalidArgument (cannot be used)."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise NotFound(f"{path}: no such file")
        self._description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self._tokenizer = _open(self._description, str(path))
        self._plain: Tokenizer | None = None
        self._lock = threading.Lock()
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {token.content: id_ for id_, token in added.items()}
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        longest_first = sorted(self._added, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        config = _optional_json(folder / "tokenizer_config.json")
        self.chat_template = _template(config, folder)
        self.token_names = {
            name: text for name in _TOKEN_NAMES if (text := _content(config.get(name))) is not None
        }
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        # A model may have more embeddings than its tokenizer has tokens, and could sample them.
        model = _optional_json(folder / "config.json")
        limit = max(int(model.get("vocab_size") or 0), *(i + 1 for i in vocabulary.values()))
        self._table = token_table(vocabulary, self._description, limit)
        # Ids that end a turn; found out by the first conversation (`turn_ends`).
        self.stop_ids: tuple[int, ...] | None = None

    @property
    def spelled_special(self) -> re.Pattern[str]:
        """Finds added tokens written in text, the longer first."""
        return self._spelled

    def turn_ends(self, after_answer: str) -> tuple[int, ...]:
        """End-of-sequence, and the special token that a template writes after an answer."""
        ids = self.encode(after_answer, parse_special=True)[:1] if after_answer else []
        ends = [id_ for id_ in ids if id_ in self.special_ids]
        eos = self._added.get(self.token_names.get("eos_token", ""))
        return tuple(dict.fromkeys(ends if eos is None else [*ends, eos]))

    def encode(
        self, text: str, *, parse_special: bool = False, add_special: bool = False
    ) -> list[int]:
        """Ids of `text`. `add_special` adds what the tokenizer adds by itself (a first token)."""
        check_text(text)
        tokenizer = self._tokenizer
        if not parse_special and self._spelled.search(text):
            tokenizer = self._plain_tokenizer()
        ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of a rendered prompt.

        Without untrusted pieces these are the ids of the joined text. Otherwise: cut the text at
        the special tokens that trusted pieces spell; a stretch between two of them that holds
        untrusted text is encoded as plain text, whole, and all the rest as usual.
        """
        if all(piece.trusted for piece in pieces):
            return self.encode("".join(p.text for p in pieces), parse_special=True)
        ids: list[int] = []
        for text, plain in self._stretches(pieces):
            if plain:
                ids += self._plain_tokenizer().encode(text, add_special_tokens=False).ids
            else:
                ids += self.encode(text, parse_special=True)
        return ids

    def _stretches(self, pieces: Sequence[Piece]) -> list[tuple[str, bool]]:
        """[(text, encode as plain text)], neighbours of the same kind joined."""
        cut: list[tuple[str, bool]] = [("", False)]
        for piece in pieces:
            if not piece.trusted:
                cut[-1] = (cut[-1][0] + piece.text, True)
                continue
            at = 0
            for match in self._spelled.finditer(piece.text):
                cut[-1] = (cut[-1][0] + piece.text[at : match.start()], cut[-1][1])
                cut += [(match.group(), False), ("", False)]
                at = match.end()
            cut[-1] = (cut[-1][0] + piece.text[at:], cut[-1][1])
        joined: list[tuple[str, bool]] = []
        for text, plain in cut:
            if joined and joined[-1][1] == plain:
                joined[-1] = (joined[-1][0] + text, plain)
            else:
                joined.append((text, plain))
        return [(text, plain) for text, plain in joined if text]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        stream = self.detokenizer(skip_special=skip_special)
        return stream.add(ids) + stream.flush()

    def detokenizer(self, *, skip_special: bool = False) -> Detokenizer:
        """A fresh stream from ids to text."""
        skipped = self.special_ids if skip_special else frozenset()
        return Detokenizer(self._table, skipped)

    def _plain_tokenizer(self) -> Tokenizer:
        """The twin that knows no added tokens."""
        with self._lock:
            if self._plain is None:
                self._plain = _open(_without_added(self._description, self._added), "tokenizer")
            return self._plain


def check_text(text: str) -> None:
    """InvalidArgument for what is no Unicode text: a lone surrogate. Control characters are."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; it cannot be written as UTF-8",
            reason="INVALID_TEXT",
            field="texts",
        ) from error


def _open(description: Mapping[str, Any], where: str) -> Tokenizer:
    kind = (description.get("model") or {}).get("type", "BPE")
    if kind != "BPE":
        raise InvalidArgument(f"{where}: a {kind} vocabulary; only BPE can be used")
    try:
        tokenizer = Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InvalidArgument(f"{where}: not a tokenizer that can be read ({error})") from error
    # A saved file may say to cut or pad; here every text is encoded whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_added(description: Mapping[str, Any], added: Mapping[str, int]) -> dict[str, Any]:
    """The description with its added tokens removed, from the vocabulary too where merges allow."""
    model = dict(description["model"])
    merges = [m if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]
    keep = {part for merge in merges for part in (*merge, "".join(merge))}
    model["vocab"] = {
        token: id_ for token, id_ in model["vocab"].items() if token not in added or token in keep
    }
    return {**description, "added_tokens": [], "model": model}


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path}: must hold a JSON object")
    return value


def _content(token: Any) -> str | None:
    """A special token's text: written as it is, or as an object with `content`."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _template(config: Mapping[str, Any], folder: Path) -> str | None:
    """The chat template: text, the one named "default" of several, or the file beside."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {t["name"]: t["template"] for t in template}
        template = named.get("default")
    beside = folder / "chat_template.jinja"
    if template is None and beside.is_file():
        return beside.read_text(encoding="utf-8")
    return template if isinstance(template, str) else None
