"""OLMo 2 (OLMo et al. 2024): norms behind attention and MLP, and of all queries and keys."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.parts import Biases

_MAPS = ("q", "k", "v", "o", "gate", "up", "down")
_FIXED: dict[str, Any] = {"norms": "after", "qk_norm": "projection"}


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file)
    bias = file.flag("attention_bias", False)
    return {
        **_FIXED,
        **sizes,
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-5),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
        "biases": Biases(bias, bias, bias, bias),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    return {
        **llama.write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim),
        "attention_bias": config.biases.q,
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    return {**llama.read_gguf(file), **_FIXED}


FAMILY = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    classifier="Olmo2ForSequenceClassification",
    names=Names(
        embedding="model.embed_tokens",
        layer="model.layers.{}",
        last_norm="model.norm",
        parts={
            **{part: llama.PARTS[part] for part in _MAPS},
            "q_norm": "self_attn.q_norm",
            "k_norm": "self_attn.k_norm",
            "after_attention": "post_attention_layernorm",
            "after_mlp": "post_feedforward_layernorm",
        },
    ),
    read=_read,
    write=_write,
    new=_FIXED,
    inert=frozenset({"attention_dropout"}),
    gguf=GgufForm("olmo2", _read_gguf),
)
