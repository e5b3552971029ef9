"""Which tokens of a tokenizer are special, and a twin of it in which no text spells them.

Special is what the tokenizer's own files say: `special` in tokenizer.json's added tokens, the roles
that tokenizer_config.json and special_tokens_map.json name (`eos_token`, …), and their lists. An
added token that none of them calls special (`</think>`) is text like any other, with one id.

The twin has every other token at its id and the special ones nowhere: not among its added tokens,
not in its vocabulary, not as the product of a merge. So neither a normalizer nor a split, a merge
or a whole-word lookup leads from text to them. No torch, no network.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from plinth.shared.errors import InvalidArgument

Json = dict[str, Any]
CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# What an unknown character may become: it ends nothing and begins nothing.
_HARMLESS_ROLES = ("unk_token", "pad_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def read_description(folder: Path, also_special: Iterable[str] = ()) -> Json:
    """tokenizer.json as JSON, each token marked as special that a file of `folder` calls so, or
    that is one of `also_special`. InvalidArgument: a file is no JSON object, or what it has is not
    what its name says."""
    path = folder / "tokenizer.json"
    description = read_object(path)
    if not isinstance(description.get("model"), dict):
        raise InvalidArgument(f"{path}: not a tokenizer: it has no model")
    if not _is_vocabulary(description["model"].get("vocab")):
        raise InvalidArgument(
            f"{path}: model.vocab must be a mapping of tokens to ids, or a list of [piece, score]"
        )
    if not isinstance(description.get("decoder"), dict | None):
        raise InvalidArgument(f"{path}: decoder must be an object, or null")
    tokens = description.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(
        isinstance(token, dict) and token_content(token) is not None for token in tokens
    ):
        raise InvalidArgument(f"{path}: added_tokens must be a list of tokens with their content")
    named = dict.fromkeys(also_special, "")
    for config in _configs(folder):
        named |= dict(_named(config))
    added = [
        {**token, "special": bool(token.get("special")) or token["content"] in named}
        for token in tokens
    ]
    known = {token["content"] for token in added}
    vocabulary = _entries(description)
    # A role's token that is an ordinary one in the file: transformers adds it, at its id.
    added += [
        {"id": vocabulary[content], "content": content, **_FLAGS, "special": True}
        for content in named
        if content not in known and content in vocabulary
    ]
    return {**description, "added_tokens": added}


def open_tokenizer(description: Mapping[str, Any], where: str) -> Tokenizer:
    """InvalidArgument where `tokenizers` cannot read it. Neither cuts nor pads."""
    try:
        tokenizer = Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InvalidArgument(f"{where}: not a tokenizer that can be read ({error})") from error
    # A saved file may say to cut or pad; here every text is encoded whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class PlainText:
    """Text to ids, none of them special, whatever the text spells. Thread-safe."""

    def __init__(self, description: Mapping[str, Any], folder: Path) -> None:
        """`description` of `folder`, by `read_description`. InvalidArgument: cannot be read."""
        whole = open_tokenizer(description, str(folder / "tokenizer.json"))
        added = whole.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        special = {token.content for token in added.values() if token.special}
        others = {token.content: id_ for id_, token in added.items() if not token.special}
        self._twin = _twin(description, special, others)
        self._where = str(folder / "tokenizer.json")
        self._tokenizer = open_tokenizer(self._twin, self._where)
        self._flags = {t["content"]: t for t in description["added_tokens"] if t["special"]}
        self.unknown_id = _unknown_id(description, folder)
        self._never = self.special_ids - {self.unknown_id}
        self._contents = {id_: token.content for id_, token in added.items()}

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Ids of `text`. `add_special` adds what the tokenizer adds by itself (a first token)."""
        return self.checked(self._tokenizer.encode(text, add_special_tokens=add_special))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self.checked(encoding) for encoding in encodings]

    def marked(self, characters: Sequence[tuple[str, str]]) -> MarkedText:
        """(special token, a character of no text): the characters become the tokens' ids."""
        ids = {content: id_ for id_, content in self._contents.items()}
        vocabulary = self._twin["model"]["vocab"]
        # Ids that `tokenizers` would give may be taken, where the vocabulary has gaps.
        first = 1 + max(*vocabulary.values(), *ids.values())
        ours = {character: first + i for i, (_, character) in enumerate(characters)}
        model = {**self._twin["model"], "vocab": vocabulary | ours}
        tokenizer = open_tokenizer({**self._twin, "model": model}, self._where)
        for content, character in characters:
            flags = {name: bool(self._flags[content].get(name)) for name in ("lstrip", "rstrip")}
            tokenizer.add_tokens([AddedToken(character, normalized=False, **flags)])
        real = {ours[character]: ids[content] for content, character in characters}
        return MarkedText(self, tokenizer, real)

    def checked(self, encoding: Any) -> list[int]:
        """The ids. InvalidArgument: this tokenizer's own alphabet has a special token in it."""
        ids: list[int] = encoding.ids
        if self._never.isdisjoint(ids):
            return ids
        for id_, is_added in zip(ids, encoding.special_tokens_mask, strict=True):
            if id_ in self._never and not is_added:
                raise InvalidArgument(
                    f"the text holds {self._contents[id_]!r}, which this tokenizer has as special "
                    "and no other way to write; leave it out",
                    reason="SPECIAL_TOKEN_IN_TEXT",
                    field="texts",
                )
        return ids


@dataclass(frozen=True)
class MarkedText:
    """Text in which some characters are special tokens, and all else is plain."""

    _plain: PlainText
    _tokenizer: Tokenizer
    _real: Mapping[int, int]  # the id that a character has here → its token's

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [self._real.get(id_, id_) for id_ in self._plain.checked(encoding)]


def read_object(path: Path) -> Json:
    """The JSON object in a file. InvalidArgument where it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path}: must hold a JSON object")
    return value


def token_content(token: Any) -> str | None:
    """A token's text in a configuration: written as it is, or as an object with `content`."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) and value else None


def _configs(folder: Path) -> Iterator[Json]:
    for name in CONFIGS:
        if (folder / name).is_file():
            yield read_object(folder / name)


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(content, the key that calls it special)."""
    for role in ROLES:
        if (content := token_content(config.get(role))) is not None:
            yield content, role
    for key in _LISTS:
        tokens = config.get(key) or []
        if not isinstance(tokens, list | dict):
            raise InvalidArgument(
                f"tokenizer_config.json: {key} is {tokens!r:.80}, must be a list of tokens",
                field=key,
            )
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            if (content := token_content(token)) is not None:
                yield content, key
    decoder = config.get("added_tokens_decoder")
    for token in decoder.values() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and token.get("special") and token_content(token):
            yield token["content"], "added_tokens_decoder"


def _is_vocabulary(value: object) -> bool:
    if not isinstance(value, list):
        return value is None or isinstance(value, dict)
    return all(isinstance(pair, list) and len(pair) == 2 for pair in value)


def _entries(description: Mapping[str, Any]) -> dict[str, int]:
    """The model's vocabulary: a mapping, or Unigram's list of [piece, score]."""
    vocabulary = (description.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, dict):
        return vocabulary
    pieces = vocabulary if isinstance(vocabulary, list) else []
    return {piece: id_ for id_, (piece, _) in enumerate(pieces)}


def _unknown_id(description: Mapping[str, Any], folder: Path) -> int | None:
    """The id of a character that the vocabulary lacks, if all that it is called is "unknown"."""
    model = description.get("model") or {}
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    content = str(model.get("unk_token") or "")
    named = [pair for config in _configs(folder) for pair in _named(config)]
    telling = {text for text, key in named if key in ROLES and key not in _HARMLESS_ROLES}
    return None if content in telling else _entries(description).get(content)


def _twin(
    description: Mapping[str, Any], special: Iterable[str], others: Mapping[str, int]
) -> Json:
    """The description without its special tokens; `others` are added tokens that stay."""
    model = dict(description["model"])
    # What the model cannot do without: its unknown token, and the symbols that texts are made of.
    gone = {
        content
        for content in special
        if len(content) > 1
        and content != model.get("unk_token")
        and not (model.get("byte_fallback") and len(content) == 6 and content.startswith("<0x"))
    }
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, dict):
        # Other names keep the ids of the rest: nobody can write these.
        names = {content: f"\ufdd0{secrets.token_hex(16)}" for content in gone}
        model["vocab"] = {names.get(t, t): id_ for t, id_ in vocabulary.items()} | dict(others)
    else:
        unknown = model.get("unk_id")
        model["vocab"] = [
            [f"\ufdd0{secrets.token_hex(16)}" if piece in gone and id_ != unknown else piece, score]
            for id_, (piece, score) in enumerate(vocabulary)
        ]
    if "merges" in model:
        model["merges"] = [
            (left, right)
            for left, right in map(_pair, model["merges"])
            if not gone & {left, right, left + right}
        ]
    kept = [t for t in description.get("added_tokens") or [] if t["content"] in others]
    return {**description, "added_tokens": kept, "model": model}


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
    return left, right
