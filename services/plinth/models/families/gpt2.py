"""GPT-2 (Radford et al. 2019): LayerNorm before, learned positions, GELU, biases everywhere."""

from __future__ import annotations

from typing import Any

from plinth.models.config import Biases, ModelConfig
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import agree
from plinth.models.hf.rules import one_of

# GPT2Config.attribute_map of transformers: other names of the same.
_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
# What of a ModelConfig all models of the family have in common.
FIXED: dict[str, Any] = {
    "norm": "layer",
    "learned_positions": True,
    "ropes": (),
    "biases": Biases.all(),
    "gated": False,
}


def _read(given: ConfigFile) -> dict[str, Any]:
    file = _without_aliases(given)
    sizes: dict[str, Any] = {
        "vocab_size": file.size("vocab_size", "vocab_size"),
        "layers": file.size("layers", "n_layer"),
        "hidden": file.size("hidden", "n_embd"),
        "heads": file.size("heads", "n_head"),
        "context": file.size("context", "n_positions"),
    }
    sizes["intermediate"] = file.size("intermediate", "n_inner", 4 * sizes["hidden"])
    sizes["head_dim"] = file.divided(sizes["hidden"], sizes["heads"])
    sizes["kv_heads"] = sizes["heads"]
    read = {
        "activation": file.activation("activation_function", "gelu_new"),
        "norm_eps": file.real("norm_eps", "layer_norm_epsilon", 1e-5),
        "tie_embeddings": file.flag("tie_word_embeddings", True),
    }
    given.keys |= file.keys
    given.asked |= file.asked | _ALIASES.keys()
    return {**FIXED, **sizes, **read}


def _without_aliases(given: ConfigFile) -> ConfigFile:
    plain = {key: value for key, value in given.content.items() if key not in _ALIASES}
    for alias, key in _ALIASES.items():
        if alias in given.content:
            agree(given.content, alias, key, plain.setdefault(key, given.content[alias]))
    return ConfigFile(plain)


def _write(config: ModelConfig) -> dict[str, Any]:
    names = {"gelu_tanh": "gelu_new"}
    return {
        "n_layer": config.layers,
        "n_embd": config.hidden,
        "n_head": config.heads,
        "n_inner": config.intermediate,
        "n_positions": config.context,
        "n_ctx": config.context,
        "activation_function": names.get(config.activation, config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    return {
        **FIXED,
        **file.sizes(grouped=False),
        "activation": "gelu_tanh",
        "norm_eps": file.real("norm_eps", "attention.layer_norm_epsilon"),
    }


FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    classifier="GPT2ForSequenceClassification",
    names=Names(
        embedding="transformer.wte",
        positions="transformer.wpe",
        layer="transformer.h.{}",
        last_norm="transformer.ln_f",
        parts={
            "before_attention": "ln_1",
            "qkv": "attn.c_attn",
            "o": "attn.c_proj",
            "before_mlp": "ln_2",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        turned=True,
    ),
    read=_read,
    write=_write,
    new={**FIXED, "activation": "gelu_tanh"},
    # The summary is GPT2DoubleHeadsModel's second head; n_ctx is an old name of n_positions.
    inert=frozenset(
        {
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "n_ctx",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        }
    ),
    only={
        "scale_attn_weights": one_of(True),
        "scale_attn_by_inverse_layer_idx": one_of(False),
        "reorder_and_upcast_attn": one_of(False),
    },
    gguf=GgufForm("gpt2", _read_gguf),
)
