"""Phi-3 and Phi-3.5 (Abdin et al. 2024): Llama with fused maps, LongRoPE, and perhaps a window or
heads of which only a part turns."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.families.windows import everywhere, kinds, window_of
from plinth.models.gguf.file import GgufFile
from plinth.models.gguf.rope import gguf_rope
from plinth.models.hf.file import WHERE, ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.hf.rules import one_of
from plinth.shared.errors import InvalidArgument


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file)
    rope = rope_of(file, sizes["context"], sizes["head_dim"], share=1.0)
    if rope.scaling is not None and rope.scaling.kind != "longrope":
        raise InvalidArgument(
            f"{WHERE}: rope_parameters has rope_type {rope.scaling.kind!r}, must be 'default' or "
            "'longrope' for model_type 'phi3'",
            field="rope_parameters",
        )
    return sizes | {
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-5),
        "ropes": (rope,),
        "layer_kinds": everywhere(file, sizes["layers"]),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    written = {
        **llama.write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim, share=True),
        "sliding_window": window_of(config) or None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    if rope.scaling is not None:
        written["original_max_position_embeddings"] = rope.scaling.original_context
    return written


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    sizes = file.sizes()
    return sizes | {
        "norm_eps": file.real("norm_eps", "attention.layer_norm_rms_epsilon"),
        "ropes": (gguf_rope(file, sizes, partial=True),),
        "layer_kinds": kinds(file.window(), [True] * sizes["layers"]),
    }


FAMILY = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    classifier="Phi3ForSequenceClassification",
    names=Names(
        embedding="model.embed_tokens",
        layer="model.layers.{}",
        last_norm="model.norm",
        parts={
            "o": "self_attn.o_proj",
            "qkv": "self_attn.qkv_proj",
            "gate_up": "mlp.gate_up_proj",
            "down": "mlp.down_proj",
            "before_attention": "input_layernorm",
            "before_mlp": "post_attention_layernorm",
        },
    ),
    read=_read,
    write=_write,
    inert=frozenset({"attention_dropout", "resid_pdrop", "embd_pdrop"}),
    # What the first files and those of Phi-4-mini say of their own code's options.
    only={
        **dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), one_of(False)),
        **dict.fromkeys(("full_attn_mod", "interpolate_factor"), one_of(1)),
    },
    gguf=GgufForm("phi3", _read_gguf),
)
