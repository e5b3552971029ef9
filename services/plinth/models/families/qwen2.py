"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases of queries, keys and values; some layers
may have a window."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.windows import from_a_layer_on, window_of, words_of
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.hf.rules import one_of
from plinth.models.parts import Biases

_FIXED: dict[str, Any] = {"biases": Biases(q=True, k=True, v=True)}


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file)
    return {
        **_FIXED,
        **sizes,
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "layer_kinds": from_a_layer_on(file, sizes["layers"], first=28),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
    }


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The keys of `windows.from_a_layer_on`."""
    window = window_of(config)
    return {
        "use_sliding_window": bool(window),
        "sliding_window": window or None,
        "max_window_layers": config.layers,
        "layer_types": words_of(config),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    return {
        **llama.write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim),
        **write_windows(config),
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    return {**llama.read_gguf(file), **_FIXED}


FAMILY = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    classifier="Qwen2ForSequenceClassification",
    names=llama.NAMES,
    read=_read,
    write=_write,
    new=_FIXED,
    inert=frozenset({"attention_dropout"}),
    only={"use_mrope": one_of(False)},
    gguf=GgufForm("qwen2", _read_gguf),
)
