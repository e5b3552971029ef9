"""A checkpoint's tokenizer, brought into a model folder: what may be wrong with it, and what not.

What the tokenizer stage would refuse is refused here by the same function. What takes nothing from
a model is told and left out: a token for padding beyond the embeddings (added without resizing
them, as many fine-tunes of Llama 2 did; a decoder never meets it), a chat template that can't be
read by Jinja (chats are refused, completions work).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.hf.folder import read_json
from plinth.models.weights import write_json
from plinth.shared.chat_template import TEMPLATE_FILE, read_template, syntax_error
from plinth.shared.errors import InvalidArgument, NotFound
from plinth.shared.plain_text import ROLES, token_content
from plinth.shared.tokenizer_folder import open_tokenizer_folder

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
# Roles of encoders, and of batches with gaps; a decoder of packed rows has no use for them.
_IDLE_ROLES = ("pad_token", "mask_token", "sep_token", "cls_token")
_MAP, _TEMPLATES = "special_tokens_map.json", "additional_chat_templates"


def import_tokenizer(folder: Path, made: Path, config: ModelConfig) -> list[str]:
    """Put `folder`'s tokenizer into the model folder `made`; what there is to tell about it.

    Raises NotFound without one, and InvalidArgument for one that can't be served with this model.
    """
    path = folder / _FILE
    if not path.is_file():
        raise NotFound(
            f"{path}: no such file; a model needs its tokenizer (transformers writes "
            "the file with AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    description, named = read_json(path), _merged(folder)
    beyond = _beyond(description, config.vocab_size)
    idle = {id_: content for id_, content in beyond.items() if _is_idle(content, named)}
    warnings = [
        f"{path.name}: token {content!r} (id {id_}) has no embedding, the model has "
        f"{config.vocab_size}; left out, since it is only for padding"
        for id_, content in sorted(idle.items())
    ]
    if idle:
        description = _without(description, set(idle.values()))
        named = _config_without(named, set(idle.values()))
        write_json(made / _FILE, description)
    else:
        shutil.copyfile(path, made / _FILE)
    write_json(made / _CONFIG, named)
    return warnings + check_tokenizer(made, config, folder)


def check_tokenizer(made: Path, config: ModelConfig, source: Path) -> list[str]:
    """What there is to tell about the tokenizer in `made`. InvalidArgument, as if of `source`:
    it can't be served, or has a token without an embedding."""
    try:
        opened = open_tokenizer_folder(made)
    except InvalidArgument as error:
        message = error.message.replace(str(made), str(source))
        raise InvalidArgument(message, reason=error.reason, field=error.field) from error
    vocabulary = opened.tokenizer.get_vocab(with_added_tokens=True)
    token = max(vocabulary, key=lambda token: vocabulary[token])
    if vocabulary[token] >= config.vocab_size:
        raise InvalidArgument(
            f"{source / _FILE if source.is_dir() else source}: token id {vocabulary[token]} has no "
            f"embedding ({token!r:.80}); the model has {config.vocab_size}"
        )
    if opened.chat_template is None:
        several = read_json(made / _CONFIG).get("chat_template")
        return ["no chat template is named 'default'; chats will be refused"] if several else []
    wrong = syntax_error(opened.chat_template)
    told = f"the chat template is not valid Jinja ({wrong}); chats will be refused"
    return [] if wrong is None else [told]


def _merged(folder: Path) -> dict[str, Any]:
    """The tokenizer's configuration in one file, which says what transformers takes from several:

    1. special_tokens_map.json where tokenizer_config.json has no `added_tokens_decoder`, which came
       in its place; it has the last word then, and none otherwise.
    2. Templates in files of their own in place of those in tokenizer_config.json.
    """
    merged: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in (_CONFIG, "chat_template.json"):
        if (folder / name).is_file():
            merged |= read_json(folder / name)
    if "added_tokens_decoder" not in merged and (folder / _MAP).is_file():
        merged |= {key: _as_configured(value) for key, value in read_json(folder / _MAP).items()}
    beside = [("default", folder / TEMPLATE_FILE)]
    beside += [(path.stem, path) for path in sorted((folder / _TEMPLATES).glob("*.jinja"))]
    templates = {name: read_template(path) for name, path in beside if path.is_file()}
    if list(templates) == ["default"]:
        merged["chat_template"] = templates["default"]
    elif templates:
        merged["chat_template"] = [
            {"name": name, "template": template} for name, template in templates.items()
        ]
    return merged


def _as_configured(token: Any) -> Any:
    """A token of special_tokens_map.json as tokenizer_config.json writes one."""
    if isinstance(token, list):
        return [_as_configured(one) for one in token]
    if isinstance(token, dict) and "content" in token:
        return {"__type": "AddedToken", **token, "special": True}
    return token


# -- tokens beyond the embeddings ------------------------------------------------------------------


def _beyond(description: Mapping[str, Any], vocab_size: int) -> dict[int, str]:
    """Added tokens without an embedding: id → content. Others are `check_tokenizer`'s business."""
    tokens = description.get("added_tokens")
    return {
        token["id"]: str(token.get("content"))
        for token in (tokens if isinstance(tokens, list) else [])
        if isinstance(token, dict) and isinstance(token.get("id"), int)
        if token["id"] >= vocab_size
    }


def _is_idle(content: str, named: Mapping[str, Any]) -> bool:
    """Whether a token is for nothing that a decoder does: no text, no template makes it."""
    roles = {role for role in ROLES if token_content(named.get(role)) == content}
    template = named.get("chat_template")
    written = any(content in text for text in _texts(template))
    return bool(roles) and roles <= set(_IDLE_ROLES) and not written


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _without(description: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    model = dict(description["model"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {t: id_ for t, id_ in model["vocab"].items() if t not in gone}
    added = [token for token in description["added_tokens"] if token["content"] not in gone]
    return {**description, "added_tokens": added, "model": model}


def _config_without(named: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """transformers would add what any key of its configuration names."""

    def kept(value: Any) -> Any:
        if isinstance(value, list):
            return [one for one in value if token_content(one) not in gone]
        if isinstance(value, dict):
            return {key: one for key, one in value.items() if token_content(one) not in gone}
        return value

    return {
        key: kept(value) if key != "chat_template" else value
        for key, value in named.items()
        if key == "chat_template" or token_content(value) not in gone
    }
