"""A GGUF file's vocabulary as a `tokenizer.json` that gives the same ids.

Knows byte-level BPE (`tokenizer.ggml.model` "gpt2") and the ways of llama.cpp to split text before
it, by their names there. An unknown name is an error: a wrong split gives wrong ids without a sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from plinth.models.config import ModelConfig
from plinth.models.gguf import PADDING, GgufModel
from plinth.shared.errors import InvalidArgument

_CONTROL, _USER_DEFINED = 3, 4
_ENDS = ("bos", "eos")
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# llama.cpp's way where a file names none: LLAMA_VOCAB_PRE_TYPE_DEFAULT in llama-vocab.cpp.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


def _gpt2() -> list[PreTokenizer]:
    return [ByteLevel(add_prefix_space=False, use_regex=True)]


def _digits() -> list[PreTokenizer]:
    return [Digits(individual_digits=True), *_gpt2()]


def _patterns(*patterns: str) -> list[PreTokenizer]:
    splits: list[PreTokenizer] = [Split(Regex(p), behavior="isolated") for p in patterns]
    return [*splits, ByteLevel(add_prefix_space=False, use_regex=False)]


def _llama3() -> list[PreTokenizer]:
    return _patterns(_LLAMA3)


def _qwen2() -> list[PreTokenizer]:
    return _patterns(_QWEN2)


def _default() -> list[PreTokenizer]:
    return _patterns(*_DEFAULT)


_SPLITS: dict[str, Callable[[], list[PreTokenizer]]] = {
    **dict.fromkeys(("gpt-2", "phi-2"), _gpt2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _digits),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _llama3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _qwen2),
    "default": _default,
}
# Where a whole piece that is in the vocabulary is taken without merging (Llama 3), and where
# text begins with BOS unless the file says otherwise (ignore_merges and add_bos of llama_vocab's
# load in llama.cpp's src/llama-vocab.cpp; its other byte-level BPEs add none).
_WHOLE_PIECES = ("llama-bpe", "llama3", "llama-v3", "falcon3")


def build_tokenizer(model: GgufModel) -> Tokenizer:
    """The file's tokenizer. Raises InvalidArgument naming what cannot be carried over."""
    kind = model.value("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise InvalidArgument(
            f"{model.path}: tokenizer {kind!r} cannot be read, only byte-level BPE ('gpt2')",
            field="tokenizer.ggml.model",
        )
    pre = model.value("tokenizer.ggml.pre", str, "default")
    if pre not in _SPLITS:
        raise InvalidArgument(
            f"{model.path}: pre-tokenizer {pre!r} is unknown; these are known: "
            f"{', '.join(sorted(_SPLITS))}",
            field="tokenizer.ggml.pre",
        )
    tokens = model.value("tokenizer.ggml.tokens", list)
    types = model.value("tokenizer.ggml.token_type", list, [1] * len(tokens))
    merges = [tuple(m.split(" ", 1)) for m in model.value("tokenizer.ggml.merges", list)]
    _check(model, tokens, types, merges)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre in _WHOLE_PIECES,
        )
    )
    tokenizer.pre_tokenizer = Sequence(_SPLITS[pre]())
    tokenizer.decoder = decoders.ByteLevel()
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (_CONTROL, _USER_DEFINED):
            special = type_ == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    added = {name: _added(model, name, name == "bos" and pre in _WHOLE_PIECES) for name in _ENDS}
    if any(added.values()):
        before, after = ([tokens[i] for i in found] for found in added.values())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(tokens[i], i) for found in added.values() for i in found],
        )
    return tokenizer


def _added(model: GgufModel, name: str, default: bool) -> list[int]:
    """The id that is put before ("bos") or after ("eos") every text, if one is."""
    if not model.value(f"tokenizer.ggml.add_{name}_token", bool, default):
        return []
    key = f"tokenizer.ggml.{name}_token_id"
    found = model.value(key, int, None)
    if found is None:
        raise InvalidArgument(
            f"{model.path}: metadata {key!r} is missing, though every text is to have this token; "
            f"name it, or set tokenizer.ggml.add_{name}_token to false",
            field=key,
        )
    return [found]


def _check(model: GgufModel, tokens: list[Any], types: list[Any], merges: list[Any]) -> None:
    known = set(tokens)
    if len(known) != len(tokens) or len(types) != len(tokens):
        raise InvalidArgument(f"{model.path}: tokenizer.ggml.tokens has repeats or lacks types")
    for merge in merges:
        if len(merge) != 2 or not {merge[0], merge[1], "".join(merge)} <= known:
            raise InvalidArgument(f"{model.path}: merge {merge!r} names a token that is not there")
    for name in ("bos", "eos", "eot", "unknown"):
        value = model.value(f"tokenizer.ggml.{name}_token_id", int, None)
        if value is not None and not 0 <= value < len(tokens):
            raise InvalidArgument(f"{model.path}: {name} id {value} is outside the vocabulary")


def tokenizer_config(model: GgufModel, context: int) -> dict[str, Any]:
    """What `tokenizer_config.json` says: special tokens by name, the chat template."""
    tokens = model.value("tokenizer.ggml.tokens", list)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for name, short in names.items():
        value = model.value(f"tokenizer.ggml.{name}_token_id", int, None)
        # The padding's may name no token: see `padding_warnings`.
        if value is not None and 0 <= value < len(tokens):
            config[f"{short}_token"] = tokens[value]
    template = model.value("tokenizer.chat_template", str, None)
    return config if template is None else config | {"chat_template": template}


def padding_warnings(model: GgufModel, config: ModelConfig) -> list[str]:
    """What there is to tell about the id of padding: a decoder of packed rows needs none."""
    value = model.value(PADDING, int, None)
    if value is None or value == config.pad_id:
        return []
    return [f"{PADDING} is {value}, outside the vocabulary of {config.vocab_size}; left out"]
