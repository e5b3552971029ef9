"""Gemma 3's text models (Gemma Team 2025): norms before and behind, of heads, gains stored less
one; windows in most layers, with a rope of their own."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import ModelConfig
from plinth.models.families import llama
from plinth.models.families.family import Family, GgufForm
from plinth.models.families.names import Names
from plinth.models.families.windows import but_each, gguf_slides, slides_of, window_of, words_of
from plinth.models.gguf.file import GgufFile
from plinth.models.gguf.rope import gguf_rope
from plinth.models.hf.file import WHERE, ConfigFile
from plinth.models.hf.rope import an_object, read_rope, written_rope
from plinth.models.hf.rules import one_of
from plinth.models.limits import real
from plinth.models.parts import Biases, LayerKind
from plinth.models.rope import Rope
from plinth.shared.errors import InvalidArgument

# Rope of layers that see all, and of those with a window: its key, its older key, its theta.
_ROPES = (
    ("full_attention", "rope_theta", 1_000_000.0),
    ("sliding_attention", "rope_local_base_freq", 10_000.0),
)
# Of a layer, as Gemma 2 has them.
NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
_FIXED: dict[str, Any] = {"norm_offset": True, "norms": "both", "qk_norm": "head"}


def _ropes(file: ConfigFile, sizes: dict[str, Any]) -> tuple[Rope, ...]:
    given = an_object(file.get("rope_parameters"), "rope_parameters")
    older = an_object(file.get("rope_scaling"), "rope_scaling")  # of layers that see all
    found = []
    for kind, key, theta in _ROPES:
        at = f"rope_parameters.{kind}"
        rope = an_object(given.get(kind), at)
        if older and kind == "full_attention":
            at, rope = "rope_scaling", rope | older
        outer = real(file.get(key, theta), "rope_theta", where=WHERE, key=key)
        rope = {"rope_theta": outer, **rope}
        found.append(read_rope(rope, at, head_dim=sizes["head_dim"], context=sizes["context"]))
    unknown = given.keys() - {kind for kind, _, _ in _ROPES}
    if unknown:
        raise InvalidArgument(
            f"{WHERE}: rope_parameters.{min(map(str, unknown))} is unknown; it has one object for "
            "each of 'full_attention' and 'sliding_attention'",
            field="rope_parameters",
        )
    return tuple(found)


def _kinds(file: ConfigFile, layers: int) -> tuple[LayerKind, ...]:
    every = file.size("layers_apart", "sliding_window_pattern", 6)
    file.get("_sliding_window_pattern")  # transformers writes its own copy
    slides = slides_of(file, layers) or but_each(every, layers)
    window = file.window("sliding_window", 4096)
    return tuple(LayerKind(window if one else 0, int(one)) for one in slides)


def read_scale(file: ConfigFile) -> float:
    """What scores of attention are multiplied by."""
    scale: float = file.real("query_scalar", "query_pre_attn_scalar", 256) ** -0.5
    return scale


def written_scale(config: ModelConfig) -> float:
    """`query_pre_attn_scalar`, which `read_scale` reads."""
    # Squared back it has lost its last digits.
    scalar = float(f"{config.scale**-2:.12g}")
    return int(scalar) if scalar.is_integer() else scalar


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file) | {"head_dim": file.size("head_dim", "head_dim", 256)}
    bias = file.flag("attention_bias", False)
    return {
        **_FIXED,
        **sizes,
        "activation": file.activation("hidden_activation", "gelu_pytorch_tanh"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": _ropes(file, sizes),
        "layer_kinds": _kinds(file, sizes["layers"]),
        "attention_scale": read_scale(file),
        "logit_cap": file.optional_real("logit_cap", "final_logit_softcapping"),
        "embedding_scale": sizes["hidden"] ** 0.5,
        "tie_embeddings": file.flag("tie_word_embeddings", True),
        "biases": Biases(bias, bias, bias, bias),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **llama.write_sizes(config),
        "hidden_activation": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {
            kind: written_rope(rope, config.head_dim)
            for (kind, _, _), rope in zip(_ROPES, config.ropes, strict=True)
        },
        "layer_types": words_of(config),
        # transformers makes a mask of it, though no layer may ask for one.
        "sliding_window": window_of(config) or 4096,
        "query_pre_attn_scalar": written_scale(config),
        "final_logit_softcapping": config.logit_cap or None,
        "attention_bias": config.biases.q,
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    sizes, bias = file.sizes(), file.has_bias("attn_q")
    theta = file.real("rope_theta", "rope.freq_base_swa", _ROPES[1][2])
    window, slides = file.window(), gguf_slides(file, sizes["layers"], 6)
    hidden, heads = sizes["hidden"], sizes["heads"]
    # The file does not say it: only the one of 62 layers (27B) scales by the width per head.
    scalar = hidden // heads if sizes["layers"] == 62 else sizes["head_dim"]
    return {
        **_FIXED,
        **sizes,
        "activation": "gelu_tanh",
        "norm_eps": file.real("norm_eps", "attention.layer_norm_rms_epsilon"),
        "ropes": (gguf_rope(file, sizes), Rope(theta)),
        "layer_kinds": tuple(
            LayerKind(window, 1) if window and one else LayerKind() for one in slides
        ),
        "attention_scale": scalar**-0.5,
        "logit_cap": file.optional_real("logit_cap", "final_logit_softcapping"),
        "embedding_scale": hidden**0.5,
        "biases": Biases(bias, bias, bias, bias),
    }


FAMILY = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    classifier="Gemma3TextForSequenceClassification",
    names=Names(
        embedding="model.embed_tokens",
        layer="model.layers.{}",
        last_norm="model.norm",
        parts={
            **{part: llama.PARTS[part] for part in ("q", "k", "v", "o")},
            "q_norm": "self_attn.q_norm",
            "k_norm": "self_attn.k_norm",
            **{part: llama.PARTS[part] for part in ("gate", "up", "down")},
            **NORMS,
        },
    ),
    read=_read,
    write=_write,
    new={
        **_FIXED,
        "activation": "gelu_tanh",
        "ropes": tuple(Rope(theta) for _, _, theta in _ROPES),
        "embedding_scale": lambda given: given["hidden"] ** 0.5,
    },
    inert=frozenset({"attention_dropout"}),
    only={
        "use_bidirectional_attention": one_of(False, None),
        # Gemma 2 had it; transformers and llama.cpp compute Gemma 3 without.
        "attn_logit_softcapping": one_of(None),
    },
    gguf=GgufForm("gemma3", _read_gguf),
)
