"""A Hugging Face `config.json` read into a ModelConfig, and written from one.

Each key is read with its type and its range, or known not to matter (`hf_keys`); anything else is
an error, never a guess. Where a file may say one thing twice (rope_theta, rope_scaling and
rope_parameters; n_embd and hidden_size), both must agree. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.models.config import ModelConfig
from plinth.models.hf_keys import check_keys
from plinth.models.hf_rope import agree, rope_of, written_rope
from plinth.models.limits import flag, from_json, real, shown, token_id, whole
from plinth.shared.errors import InvalidArgument

_WHERE, _GENERATION = "config.json", "generation_config.json"
# Field of ModelConfig → key, for both directions.
_LLAMA_SIZES = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "context": "max_position_embeddings",
}
_GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "layers": "n_layer",
    "hidden": "n_embd",
    "heads": "n_head",
    "intermediate": "n_inner",
    "context": "n_positions",
}
_KEYS: Mapping[str, Mapping[str, str]] = {
    "llama": _LLAMA_SIZES | {"norm_eps": "rms_norm_eps", "rope_theta": "rope_theta"},
    "gpt2": _GPT2_SIZES | {"norm_eps": "layer_norm_epsilon", "kv_heads": "n_head"},
}
# GPT2Config.attribute_map of transformers.
_GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_ACTIVATIONS = {
    "hidden_act": ("silu", "swish"),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
}


# -- reading -------------------------------------------------------------------------------------


def from_hf(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Read `config.json` (and `generation_config.json` for the end-of-sequence ids).

    Raises InvalidArgument for an unknown architecture, code that would have to be run
    (`auto_map`), quantised weights, a number that cannot be right, or a key that is unknown or
    asks for a variant that this decoder does not compute.
    """
    fields = _fields(config, generation or {})
    try:
        return ModelConfig(**fields)
    except InvalidArgument as error:
        key = _KEYS[fields["family"]].get(error.field, error.field)
        raise InvalidArgument(f"{_WHERE}: {key}: {error.message}", field=key) from error


def _fields(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a ModelConfig.

    Ids outside the vocabulary are left out: no token could ever be met that they name (older
    Llama files have pad_token_id -1). Raises InvalidArgument naming the key.
    """
    if config.get("auto_map"):
        raise InvalidArgument(
            f"{_WHERE}: auto_map asks to run code from the checkpoint; "
            "Plinth runs none. Convert the model to a plain Llama or GPT-2 first",
            field="auto_map",
        )
    if config.get("quantization_config"):
        raise InvalidArgument(
            f"{_WHERE}: quantization_config: quantised checkpoints cannot be opened; "
            "import the fp32, fp16 or bf16 weights, or a GGUF file",
            field="quantization_config",
        )
    family = config.get("model_type")
    if family not in ("llama", "gpt2"):
        raise InvalidArgument(
            f"{_WHERE}: model_type {shown(family)} is unknown; Plinth opens 'llama' and 'gpt2'",
            field="model_type",
        )
    check_keys(config, family, _WHERE)
    read = _llama(config) if family == "llama" else _gpt2(_without_aliases(config))
    return read | _special_ids(config, generation, read["vocab_size"]) | {"family": family}


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    _check_activation(config, "hidden_act", "silu")
    optional = ("kv_heads", "head_dim")
    read: dict[str, Any] = {
        field: _size(config, field, key)
        for field, key in _LLAMA_SIZES.items()
        if field not in optional or config.get(key) is not None
    }
    read.setdefault("kv_heads", read["heads"])
    read.setdefault("head_dim", _head_dim(read["hidden"], read["heads"], "hidden_size"))
    if read["heads"] % read["kv_heads"]:
        raise InvalidArgument(
            f"{_WHERE}: num_attention_heads is {read['heads']}, which does not divide by "
            f"num_key_value_heads, {read['kv_heads']}",
            field="num_key_value_heads",
        )
    theta, scaling = rope_of(config, read["context"])
    return read | {
        "norm_eps": real(
            config.get("rms_norm_eps", 1e-6), "norm_eps", where=_WHERE, key="rms_norm_eps"
        ),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": _flag(config, "tie_word_embeddings", False),
        "attention_bias": _flag(config, "attention_bias", False),
        "mlp_bias": _flag(config, "mlp_bias", False),
    }


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    _check_activation(config, "activation_function", "gelu_new")
    read: dict[str, Any] = {
        field: _size(config, field, key)
        for field, key in _GPT2_SIZES.items()
        if field != "intermediate" or config.get(key) is not None
    }
    read.setdefault("intermediate", 4 * read["hidden"])
    if read["hidden"] % read["heads"]:
        raise InvalidArgument(
            f"{_WHERE}: n_embd is {read['hidden']}, which does not divide by n_head, "
            f"{read['heads']}",
            field="n_head",
        )
    key = "layer_norm_epsilon"
    return read | {
        "kv_heads": read["heads"],
        "head_dim": _head_dim(read["hidden"], read["heads"], "n_embd"),
        "norm_eps": real(config.get(key, 1e-5), "norm_eps", where=_WHERE, key=key),
        "tie_embeddings": _flag(config, "tie_word_embeddings", True),
        "attention_bias": True,
        "mlp_bias": True,
    }


def _without_aliases(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in config.items() if key not in _GPT2_ALIASES}
    for alias, key in _GPT2_ALIASES.items():
        if alias in config:
            agree(config, alias, key, plain.setdefault(key, config[alias]))
    return plain


def _size(config: Mapping[str, Any], field: str, key: str) -> int:
    if key not in config:
        raise InvalidArgument(f"{_WHERE}: {key!r} is missing", field=key)
    return whole(from_json(config[key]), field, where=_WHERE, key=key)


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    return flag(config.get(key, default), where=_WHERE, key=key)


def _check_activation(config: Mapping[str, Any], key: str, default: str) -> None:
    value, allowed = config.get(key, default), _ACTIVATIONS[key]
    if value not in allowed:
        wanted = " or ".join(repr(name) for name in allowed)
        raise InvalidArgument(f"{_WHERE}: {key} is {shown(value)}, only {wanted} works", field=key)


def _head_dim(hidden: int, heads: int, key: str) -> int:
    if hidden < heads:
        raise InvalidArgument(
            f"{_WHERE}: {key} is {hidden}, fewer features than the {heads} heads", field=key
        )
    return hidden // heads


def _special_ids(
    config: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int
) -> dict[str, Any]:
    def known(value: Any, key: str, where: str) -> list[int]:
        ids = [] if value is None else value if isinstance(value, list) else [value]
        checked = [token_id(from_json(i), where=where, key=key) for i in ids]
        return [i for i in checked if 0 <= i < vocab_size]

    def one(key: str) -> int | None:
        if isinstance(config.get(key), list):
            token_id(config[key], where=_WHERE, key=key)
        return next(iter(known(config.get(key), key, _WHERE)), None)

    eos = "eos_token_id"
    ends = known(generation.get(eos), eos, _GENERATION) + known(config.get(eos), eos, _WHERE)
    return {
        "bos_id": one("bos_token_id"),
        "pad_id": one("pad_token_id"),
        "eos_ids": tuple(dict.fromkeys(ends)),
    }


# -- writing -------------------------------------------------------------------------------------


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that transformers opens."""
    return _to_llama(config) if config.family == "llama" else _to_gpt2(config)


def _written_ids(config: ModelConfig) -> dict[str, Any]:
    eos = config.eos_ids
    return {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else (list(eos) or None),
        "pad_token_id": config.pad_id,
    }


def _to_llama(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(config, field) for field, key in _LLAMA_SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": written_rope(config.rope_theta, config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "dtype": "float32",
        **_written_ids(config),
    }


def _to_gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{key: getattr(config, field) for field, key in _GPT2_SIZES.items()},
        "n_ctx": config.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "dtype": "float32",
        **_written_ids(config),
    }
