"""Llama 2 and 3 (Touvron et al. 2023; Dubey et al. 2024): RMSNorm before, rotary positions,
grouped-query attention, SwiGLU."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import Biases, ModelConfig
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.gguf.file import GgufFile
from plinth.models.gguf.rope import gguf_rope
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.hf.rules import one_of

PARTS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "before_attention": "input_layernorm",
    "before_mlp": "post_attention_layernorm",
}
NAMES = Names(
    embedding="model.embed_tokens",
    layer="model.layers.{}",
    last_norm="model.norm",
    parts=PARTS,
)


def read_sizes(file: ConfigFile, *, head_dim: bool = True) -> dict[str, Any]:
    """What Llama's keys say, and those of many after it; the heads' size has a key or has none."""
    sizes: dict[str, Any] = {
        "vocab_size": file.size("vocab_size", "vocab_size"),
        "layers": file.size("layers", "num_hidden_layers"),
        "hidden": file.size("hidden", "hidden_size"),
        "heads": file.size("heads", "num_attention_heads"),
        "intermediate": file.size("intermediate", "intermediate_size"),
        "context": file.size("context", "max_position_embeddings"),
    }
    sizes["kv_heads"] = file.grouped(sizes["heads"], "num_key_value_heads")
    if head_dim:
        sizes["head_dim"] = file.head_dim(sizes["hidden"], sizes["heads"], "head_dim")
    else:
        sizes["head_dim"] = file.divided(sizes["hidden"], sizes["heads"])
    return sizes


def write_sizes(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_sizes` reads."""
    return {
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.context,
    }


def read(file: ConfigFile) -> dict[str, Any]:
    """The keys of its `config.json`, and of those like it."""
    sizes = read_sizes(file)
    bias = file.flag("attention_bias", False)
    return sizes | {
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
        "biases": Biases(bias, bias, bias, bias, file.flag("mlp_bias", False)),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read` reads."""
    (rope,) = config.ropes
    return {
        **write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_theta": rope.theta,
        "rope_parameters": written_rope(rope, config.head_dim),
        "attention_bias": config.biases.q,
        "mlp_bias": config.biases.mlp,
    }


def read_gguf(file: GgufFile) -> dict[str, Any]:
    """Of files of this architecture, and of many like it. Biases are told by the tensors."""
    sizes = file.sizes()
    bias = file.has_bias("attn_q")
    return sizes | {
        "norm_eps": file.real("norm_eps", "attention.layer_norm_rms_epsilon"),
        "ropes": (gguf_rope(file, sizes),),
        "biases": Biases(bias, bias, bias, bias, file.has_bias("ffn_up")),
    }


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    classifier="LlamaForSequenceClassification",
    names=NAMES,
    read=read,
    write=write,
    # pretraining_tp cuts one product into a sum of products: another rounding, the same
    # mathematics.
    inert=frozenset({"attention_dropout", "pretraining_tp"}),
    only={
        "rope_interleaved": one_of(False),
        "qk_norm": one_of(False, None),
        "use_qk_norm": one_of(False, None),
    },
    gguf=GgufForm("llama", read_gguf, paired=True),
)
