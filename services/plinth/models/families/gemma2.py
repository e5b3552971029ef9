"""Gemma 2 (Gemma Team 2024): norms before and behind, gains stored less one; scores of attention
and logits capped; a window in every other layer."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import gemma3, llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.families.windows import (
    but_each,
    gguf_slides,
    kinds,
    slides_of,
    window_of,
    words_of,
)
from plinth.models.gguf.file import GgufFile
from plinth.models.gguf.rope import gguf_rope
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.hf.rules import one_of
from plinth.models.parts import Biases, LayerKind

_FIXED: dict[str, Any] = {"norm_offset": True, "norms": "both"}
_EVERY = 2  # of so many layers the last has no window
# Where a file has no key for it.
_WINDOW, _SCORES, _LOGITS = 4096, 50.0, 30.0


def _kinds(file: ConfigFile, layers: int) -> tuple[LayerKind, ...]:
    slides = slides_of(file, layers) or but_each(_EVERY, layers)
    return kinds(file.window("sliding_window", _WINDOW), slides)


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file) | {"head_dim": file.size("head_dim", "head_dim", 256)}
    bias = file.flag("attention_bias", False)
    return {
        **_FIXED,
        **sizes,
        "activation": file.activation("hidden_activation", "gelu_pytorch_tanh"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "layer_kinds": _kinds(file, sizes["layers"]),
        "attention_scale": gemma3.read_scale(file),
        "attention_cap": file.optional_real("attention_cap", "attn_logit_softcapping", _SCORES),
        "logit_cap": file.optional_real("logit_cap", "final_logit_softcapping", _LOGITS),
        "embedding_scale": sizes["hidden"] ** 0.5,
        "tie_embeddings": file.flag("tie_word_embeddings", True),
        "biases": Biases(bias, bias, bias, bias),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    return {
        **llama.write_sizes(config),
        "hidden_activation": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim),
        "layer_types": words_of(config),
        # transformers makes a mask of it, though no layer may ask for one.
        "sliding_window": window_of(config) or _WINDOW,
        "query_pre_attn_scalar": gemma3.written_scale(config),
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
        "attention_bias": config.biases.q,
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    sizes, bias = file.sizes(), file.has_bias("attn_q")
    # The file does not say it: only the one of 46 layers (27B) scales by the width per head.
    scalar = sizes["hidden"] // sizes["heads"] if sizes["layers"] == 46 else sizes["head_dim"]
    return {
        **_FIXED,
        **sizes,
        "activation": "gelu_tanh",
        "norm_eps": file.real("norm_eps", "attention.layer_norm_rms_epsilon"),
        "ropes": (gguf_rope(file, sizes),),
        "layer_kinds": kinds(file.window(_WINDOW), gguf_slides(file, sizes["layers"], _EVERY)),
        "attention_scale": scalar**-0.5,
        "attention_cap": file.real("attention_cap", "attn_logit_softcapping", _SCORES),
        "logit_cap": file.real("logit_cap", "final_logit_softcapping", _LOGITS),
        "embedding_scale": sizes["hidden"] ** 0.5,
        "biases": Biases(bias, bias, bias, bias),
    }


FAMILY = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    classifier="Gemma2ForSequenceClassification",
    names=Names(
        embedding="model.embed_tokens",
        layer="model.layers.{}",
        last_norm="model.norm",
        parts={
            **{part: llama.PARTS[part] for part in ("q", "k", "v", "o", "gate", "up", "down")},
            **gemma3.NORMS,
        },
    ),
    read=_read,
    write=_write,
    new={
        **_FIXED,
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
        "attention_cap": _SCORES,
        "logit_cap": _LOGITS,
        "embedding_scale": lambda given: given["hidden"] ** 0.5,
    },
    # Of transformers and of its first files: hidden_activation and sliding_window hold.
    inert=frozenset({"attention_dropout", "hidden_act", "sliding_window_size"}),
    only={"use_bidirectional_attention": one_of(False, None)},
    gguf=GgufForm("gemma2", _read_gguf),
)
