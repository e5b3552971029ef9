"""Qwen3 (Yang et al. 2025): Llama with a norm of each query's and each key's head."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.families.qwen2 import write_windows
from plinth.models.families.windows import from_a_layer_on
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.parts import Biases

PARTS = {**llama.PARTS, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
NAMES = Names(
    embedding="model.embed_tokens",
    layer="model.layers.{}",
    last_norm="model.norm",
    parts=PARTS,
)
_FIXED: dict[str, Any] = {"qk_norm": "head"}


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file) | {"head_dim": file.size("head_dim", "head_dim", 128)}
    bias = file.flag("attention_bias", False)
    return {
        **_FIXED,
        **sizes,
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "layer_kinds": from_a_layer_on(file, sizes["layers"], first=28),
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
        **write_windows(config),
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    return {**llama.read_gguf(file), **_FIXED}


FAMILY = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    classifier="Qwen3ForSequenceClassification",
    names=NAMES,
    read=_read,
    write=_write,
    new=_FIXED,
    inert=frozenset({"attention_dropout"}),
    gguf=GgufForm("qwen3", _read_gguf),
)
