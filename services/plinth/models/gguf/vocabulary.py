"""A GGUF file's vocabulary as a `tokenizer.json` that gives the same ids.

Knows byte-level BPE (`tokenizer.ggml.model` "gpt2"), with llama.cpp's ways to split text before it
(`gguf.splits`), and SentencePiece's BPE ("llama").
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from plinth.models.config import ModelConfig
from plinth.models.gguf.model import PADDING, GgufModel
from plinth.models.gguf.sentencepiece import CONTROL, UNKNOWN, USER_DEFINED, sentencepiece_bpe
from plinth.models.gguf.splits import SPLITTINGS
from plinth.shared.errors import InvalidArgument

_ENDS = ("bos", "eos")
# What llama.cpp strips no space behind, of Phi-3's special tokens.
_PLAIN_OF_PHI3 = ("<unk>", "<s>", "<|endoftext|>")

# What the format calls vocabularies of other kinds.
_OTHERS = {"t5": "SentencePiece's Unigram", "bert": "WordPiece", "none": "no vocabulary"}


def build_tokenizer(model: GgufModel) -> Tokenizer:
    """The file's tokenizer. Raises InvalidArgument naming what cannot be carried over."""
    kind = model.value("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        called = f" ({_OTHERS[kind]})" if kind in _OTHERS else ""
        raise InvalidArgument(
            f"{model.path}: tokenizer.ggml.model is {kind!r}{called}, which cannot be read; "
            "byte-level BPE ('gpt2') and SentencePiece's BPE ('llama') can. Import the model's "
            "Hugging Face folder, with its tokenizer.json, instead",
            field="tokenizer.ggml.model",
        )
    tokens = model.value("tokenizer.ggml.tokens", list)
    types = model.value("tokenizer.ggml.token_type", list, [1] * len(tokens))
    _check(model, tokens, types)
    spelled = kind == "llama"
    tokenizer, bos = _sentencepiece(model, tokens, types) if spelled else _byte_level(model, tokens)
    rstrip = spelled and model.architecture == "phi3"
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in (CONTROL, USER_DEFINED) or (spelled and type_ == UNKNOWN):
            special = type_ != USER_DEFINED
            bare = not (special and rstrip) or token in _PLAIN_OF_PHI3
            tokenizer.add_tokens(
                [AddedToken(token, special=special, normalized=False, rstrip=not bare)]
            )
    added = {name: _added(model, name, name == "bos" and bos) for name in _ENDS}
    if any(added.values()):
        before, after = ([tokens[i] for i in found] for found in added.values())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(tokens[i], i) for found in added.values() for i in found],
        )
    return tokenizer


def _byte_level(model: GgufModel, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """And whether text begins with BOS unless the file says otherwise."""
    pre = model.value("tokenizer.ggml.pre", str, "default")
    if pre not in SPLITTINGS:
        raise InvalidArgument(
            f"{model.path}: pre-tokenizer {pre!r} is unknown; these are known: "
            f"{', '.join(sorted(SPLITTINGS))}",
            field="tokenizer.ggml.pre",
        )
    merges, known = [], set(tokens)
    for merge in model.value("tokenizer.ggml.merges", list):
        # A first half may begin with a space, of vocabularies that aren't in GPT-2's characters.
        at = merge.find(" ", 1)
        pair = (merge[:at], merge[at + 1 :]) if at > 0 else (merge, "")
        if not {*pair, "".join(pair)} <= known:
            raise InvalidArgument(f"{model.path}: merge {pair!r} names a token that is not there")
        merges.append(pair)
    splitting = SPLITTINGS[pre]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=splitting.whole,
        )
    )
    if (normalizer := splitting.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.bos


def _sentencepiece(model: GgufModel, tokens: list[str], types: list[int]) -> tuple[Tokenizer, bool]:
    """The same; there text begins with BOS."""
    scores = model.value("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens) or not all(isinstance(one, float) for one in scores):
        raise InvalidArgument(
            f"{model.path}: tokenizer.ggml.scores has {len(scores)} entries, must have a number "
            f"for each of {len(tokens)} tokens",
            field="tokenizer.ggml.scores",
        )
    unknown = model.special_id("unknown")
    return sentencepiece_bpe(
        tokens,
        scores,
        types,
        unknown=None if unknown is None else tokens[unknown],
        prefix=model.value("tokenizer.ggml.add_space_prefix", bool, True),
    ), True


def _added(model: GgufModel, name: str, default: bool) -> list[int]:
    """The id that is put before ("bos") or after ("eos") every text, if one is."""
    if not model.value(f"tokenizer.ggml.add_{name}_token", bool, default):
        return []
    found = model.special_id(name)
    if found is None:
        key = f"tokenizer.ggml.{name}_token_id"
        raise InvalidArgument(
            f"{model.path}: metadata {key!r} is missing, though every text is to have this token; "
            f"name it, or set tokenizer.ggml.add_{name}_token to false",
            field=key,
        )
    return [found]


def _check(model: GgufModel, tokens: list[Any], types: list[Any]) -> None:
    if len(set(tokens)) != len(tokens) or len(types) != len(tokens):
        raise InvalidArgument(f"{model.path}: tokenizer.ggml.tokens has repeats or lacks types")
    for name in ("bos", "eos", "eot", "unknown"):
        value = model.special_id(name)
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
        value = model.special_id(name)
        # The padding's may name no token: see `padding_warnings`.
        if value is not None and 0 <= value < len(tokens):
            config[f"{short}_token"] = tokens[value]
    template = model.value("tokenizer.chat_template", str, None)
    return config if template is None else config | {"chat_template": template}


def padding_warnings(model: GgufModel, config: ModelConfig) -> list[str]:
    """What there is to tell about the id of padding: a decoder of packed rows needs none."""
    value = model.special_id("padding")
    if value is None or value == config.pad_id:
        return []
    return [f"{PADDING} is {value}, outside the vocabulary of {config.vocab_size}; left out"]
