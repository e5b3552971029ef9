"""Mistral 7B and after (Jiang et al. 2023): Llama with a window of attention, or without."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family
from plinth.models.families.windows import everywhere, window_of
from plinth.models.hf.file import ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.hf.rules import one_of


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file)
    return sizes | {
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "layer_kinds": everywhere(file, sizes["layers"], default=4096),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    return {
        **llama.write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim),
        "sliding_window": window_of(config) or None,
    }


FAMILY = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    classifier="MistralForSequenceClassification",
    names=llama.NAMES,
    read=_read,
    write=_write,
    inert=frozenset({"attention_dropout"}),
    only=dict.fromkeys(("attention_bias", "mlp_bias"), one_of(False)),  # Llama's, which it has not
    # The format keeps no window: llama.cpp sees all, as the files of later Mistrals say.
    gguf_as="llama",
)
