"""SmolLM3 (Bakouch et al. 2025): Llama in which some layers have no positions, and those perhaps a
window."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.windows import WORDS, window_of, words_of
from plinth.models.gguf.file import GgufFile
from plinth.models.hf.file import WHERE, ConfigFile
from plinth.models.hf.rope import rope_of, written_rope
from plinth.models.limits import shown
from plinth.models.parts import Biases, LayerKind
from plinth.shared.errors import InvalidArgument


def _kinds(file: ConfigFile, layers: int) -> tuple[LayerKind, ...]:
    turned = file.get("no_rope_layers")  # 1: it has positions
    every = file.size("layers_apart", "no_rope_layer_interval", 4)
    if turned is None:
        turned = [int((number + 1) % every != 0) for number in range(layers)]
    right = isinstance(turned, list) and len(turned) >= layers
    if not right or any(isinstance(one, bool) or one not in (0, 1) for one in turned):
        raise InvalidArgument(
            f"{WHERE}: no_rope_layers is {shown(turned)}, must be a list of {layers} of 0 or 1",
            field="no_rope_layers",
        )
    used, window = file.flag("use_sliding_window", False), file.window("sliding_window")
    words = file.words("layer_types", layers, list(WORDS))
    slides = [WORDS[word] for word in words] if words else [not one for one in turned]
    return tuple(
        LayerKind(window if used and slide else 0, 0 if one else None)
        for one, slide in zip(turned[:layers], slides[:layers], strict=True)
    )


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file)
    bias = file.flag("attention_bias", False)
    return sizes | {
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"], theta=2000000.0),),
        "layer_kinds": _kinds(file, sizes["layers"]),
        "tie_embeddings": file.flag("tie_word_embeddings", True),
        "biases": Biases(bias, bias, bias, bias, file.flag("mlp_bias", False)),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    window = window_of(config)
    return {
        **llama.write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim),
        "attention_bias": config.biases.q,
        "mlp_bias": config.biases.mlp,
        "no_rope_layers": [int(kind.rope is not None) for kind in config.kinds],
        "use_sliding_window": bool(window),
        "sliding_window": window or None,
        "layer_types": words_of(config),
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    read = llama.read_gguf(file)
    # The file does not say it: llama.cpp has no positions in every fourth layer, as the model had.
    kinds = (LayerKind(rope=None if n % 4 == 3 else 0) for n in range(read["layers"]))
    return {**read, "layer_kinds": tuple(kinds)}


FAMILY = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    classifier="SmolLM3ForSequenceClassification",
    names=llama.NAMES,
    read=_read,
    write=_write,
    inert=frozenset({"attention_dropout", "pretraining_tp", "max_window_layers"}),
    gguf=GgufForm("smollm3", _read_gguf, paired=True),
)
