"""Mixtral (Jiang et al. 2024): Mistral, with a mixture of experts for every layer's MLP."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import Experts, LayerKind, ModelConfig
from plinth.models.families import llama
from plinth.models.families.experts import (
    experts_of,
    gguf_experts,
    read_balance,
    write_balance,
)
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.families.windows import window_of
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.hf.rules import one_of


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file)
    window = file.window("sliding_window")
    return sizes | {
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-5),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "layer_kinds": (LayerKind(window, experts=True),) * sizes["layers"] if window else (),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
        "experts": Experts(
            count=file.size("experts.count", "num_local_experts", 8),
            chosen=file.size("experts.chosen", "num_experts_per_tok", 2),
            width=sizes["intermediate"],
            **read_balance(file),
        ),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    experts = experts_of(config)
    return {
        **llama.write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim),
        "sliding_window": window_of(config) or None,
        "num_local_experts": experts.count,
        "num_experts_per_tok": experts.chosen,
        **write_balance(experts),
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    experts = gguf_experts(file, "feed_forward_length")
    return {**llama.read_gguf(file), "experts": experts}


FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    classifier="MixtralForSequenceClassification",
    names=Names(
        embedding="model.embed_tokens",
        layer="model.layers.{}",
        last_norm="model.norm",
        parts={
            **{part: llama.PARTS[part] for part in ("q", "k", "v", "o")},
            "router": "block_sparse_moe.gate",
            "expert_gate": "block_sparse_moe.experts.{}.w1",
            "expert_down": "block_sparse_moe.experts.{}.w2",
            "expert_up": "block_sparse_moe.experts.{}.w3",
            "before_attention": "input_layernorm",
            "before_mlp": "post_attention_layernorm",
        },
    ),
    read=_read,
    write=_write,
    new={"experts": lambda fields: Experts(8, 2, fields["intermediate"], balanced=True)},
    # Noise on what the router sees, in training alone.
    inert=frozenset({"attention_dropout", "router_jitter_noise"}),
    only=dict.fromkeys(("attention_bias", "mlp_bias"), one_of(False)),  # Llama's, which it has not
    gguf=GgufForm("llama", _read_gguf, experts=True, paired=True),
)
