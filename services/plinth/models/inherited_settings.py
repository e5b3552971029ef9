"""What a model's files say beside its shape and its weights: special ids, and how to generate.

A model that is imported, tuned or merged says what its base said, file by file, in config.json and
in generation_config.json; only tokens that end an answer are added, where it has learned to end
by others than its base did. Tokens' names and chat templates lie in the tokenizer's files, which
are copied. One thing may not stay: a reward model's padding (see `pad_apart`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plinth.models.hf.folder import read_json
from plinth.models.hf.keys import GENERATION
from plinth.models.limits import from_json
from plinth.models.weights import write_json
from plinth.shared.plain_text import token_content

_EOS, _PAD = "eos_token_id", "pad_token_id"
_IDS = ("bos_token_id", _EOS, _PAD)
_CONFIG, _GENERATION, _TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"


def carry_settings(base: Path, made: Path) -> None:
    """Let the model folder `made` say what its `base` says; `made` was saved with the base's ids.

    Settings that an old base has in its config.json go to generation_config.json, where
    transformers looks for them; a folder without that file (a reward model's) gets none. An id
    outside the vocabulary is left out: it names no token.
    """
    theirs, mine = read_json(base / _CONFIG), read_json(made / _CONFIG)
    size = int(mine["vocab_size"])
    there = (base / _GENERATION).is_file()
    generation = read_json(base / _GENERATION) if there else _legacy(theirs)
    known = [*_ids(generation.get(_EOS), size), *_ids(theirs.get(_EOS), size)]
    added = [id_ for id_ in _ids(mine.get(_EOS), size) if id_ not in known]
    write_json(made / _CONFIG, mine | _special(theirs, added, size))
    if (made / _GENERATION).is_file():
        said = {key: theirs.get(key) for key in _IDS} | generation
        ids = {
            key: value for key, value in _special(said, added, size).items() if value is not None
        }
        kept = {key: value for key, value in generation.items() if not key.endswith("_token_id")}
        write_json(made / _GENERATION, kept | ids)


def add_ends(folder: Path, ends: Sequence[int]) -> None:
    """Let the model in `folder` end its answers by these ids too: what an adapter has learned
    becomes an `eos_token_id` of the model that it is put on."""
    config = read_json(folder / _CONFIG)
    size = int(config["vocab_size"])
    there = (folder / _GENERATION).is_file()
    generation = read_json(folder / _GENERATION) if there else {}
    known = [*_ids(generation.get(_EOS), size), *_ids(config.get(_EOS), size)]
    if not (added := [id_ for id_ in _ids(list(ends), size) if id_ not in known]):
        return
    for file, said in ((_CONFIG, config), (_GENERATION, generation)):
        if (folder / file).is_file():
            with_them = [*_ids(said.get(_EOS), size), *added]
            write_json(folder / file, said | {_EOS: _as_written(said.get(_EOS), with_them)})


def pad_apart(folder: Path, end_id: int | None = None) -> None:
    """Let a reward model, saved in `folder` with its tokenizer, pad with a token that ends none of
    its answers.

    transformers reads a sequence's score at the last token that is not padding. Where a base pads
    with the token that ends a turn, it would read one token early. So padding is then the
    tokenizer's own, or else the token for the unknown, or the one that begins a sequence, whichever
    is another; and none at all (transformers then takes sequences one by one) where all are the
    same. end_id: what ends a turn; None: the tokenizer's end-of-sequence.
    """
    config = read_json(folder / _CONFIG)
    tokenizer = read_json(folder / _TOKENIZER) if (folder / _TOKENIZER).is_file() else {}
    contents = _contents(folder)
    ids = {content: id_ for id_, content in contents.items()}
    size = int(config["vocab_size"])
    named = {role: ids.get(token_content(tokenizer.get(f"{role}_token")) or "") for role in _ROLES}
    named = {role: next(iter(_ids(id_, size)), None) for role, id_ in named.items()}
    end = named["eos"] if end_id is None else end_id
    candidates = [*_ids(config.get(_PAD), size), *(named[role] for role in _ROLES[1:])]
    pad = next((id_ for id_ in candidates if id_ is not None and id_ != end), None)
    write_json(folder / _CONFIG, config | {_PAD: pad})
    if pad is not None and pad != named["pad"] and pad in contents:
        write_json(folder / _TOKENIZER, tokenizer | {"pad_token": contents[pad]})


_ROLES = ("eos", "pad", "unk", "bos")


def _contents(folder: Path) -> dict[int, str]:
    """Added tokens, and the whole vocabulary where it is a mapping."""
    description = read_json(folder / "tokenizer.json")
    vocabulary = (description.get("model") or {}).get("vocab")
    found = {id_: text for text, id_ in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    return found | {one["id"]: one["content"] for one in description.get("added_tokens") or []}


def _legacy(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of a config.json without a generation_config.json beside it."""
    return {key: config[key] for key in GENERATION if config.get(key) is not None}


def _special(said: Mapping[str, Any], added: Sequence[int], size: int) -> dict[str, Any]:
    """Every special id of a file, as that file has it."""
    further = {key: value for key, value in said.items() if key.endswith("_token_id")}
    kept = {key: _as_written(value, _ids(value, size)) for key, value in further.items()}
    ends = [*_ids(said.get(_EOS), size), *added]
    return dict.fromkeys(_IDS) | kept | {_EOS: _as_written(said.get(_EOS), ends)}


def _as_written(said: Any, ids: Sequence[int]) -> int | list[int] | None:
    """A list stays one; one id alone is none."""
    if isinstance(said, list) or len(ids) > 1:
        return list(ids) or None
    return ids[0] if ids else None


def _ids(said: Any, size: int) -> list[int]:
    values = map(from_json, said if isinstance(said, list) else [said])
    return [
        one
        for one in values
        if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < size
    ]
