"""Qwen3's mixtures of experts (Yang et al. 2025): Qwen3, with experts in all layers or in some."""

from __future__ import annotations

from typing import Any

from plinth.models.activations import ACTIVATIONS
from plinth.models.config import Biases, Experts, LayerKind, ModelConfig
from plinth.models.families import llama, qwen3
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
from plinth.models.hf.file import WHERE, ConfigFile
from plinth.models.hf.rope import agree, rope_of, written_rope
from plinth.models.hf.rules import one_of
from plinth.models.limits import shown
from plinth.shared.errors import InvalidArgument

_FIXED: dict[str, Any] = {"qk_norm": "head"}


def _read(file: ConfigFile) -> dict[str, Any]:
    sizes = llama.read_sizes(file)
    bias = file.flag("attention_bias", False)
    # transformers writes the older Mixtral's name for it.
    count, older = "num_experts", "num_local_experts"
    if count not in file.content:
        count = older
    elif file.get(older) is not None:
        agree(file.content, older, count, file.content[count])
    return {
        **_FIXED,
        **sizes,
        "activation": file.activation("hidden_act", "silu"),
        "norm_eps": file.real("norm_eps", "rms_norm_eps", 1e-6),
        "ropes": (rope_of(file, sizes["context"], sizes["head_dim"]),),
        "layer_kinds": _kinds(file, sizes["layers"]),
        "tie_embeddings": file.flag("tie_word_embeddings", False),
        "biases": Biases(bias, bias, bias, bias),
        "experts": Experts(
            count=file.size("experts.count", count, 128),
            chosen=file.size("experts.chosen", "num_experts_per_tok", 8),
            width=file.size("experts.width", "moe_intermediate_size", 768),
            normalised=file.flag("norm_topk_prob", False),
            **read_balance(file),
        ),
    }


def _kinds(file: ConfigFile, layers: int) -> tuple[LayerKind, ...]:
    """Empty where all layers have experts and none a window."""
    used = file.flag("use_sliding_window", False)
    window = file.window("sliding_window", 4096)
    step = file.size("layers_apart", "decoder_sparse_step", 1)
    plain = file.get("mlp_only_layers") or []
    known = range(layers)
    if not isinstance(plain, list) or not all(type(n) is int and n in known for n in plain):
        raise InvalidArgument(
            f"{WHERE}: mlp_only_layers is {shown(plain)}, must be a list of layers' numbers, "
            f"0 to {layers - 1}",
            field="mlp_only_layers",
        )
    sparse = [n not in plain and (n + 1) % step == 0 for n in known]
    if all(sparse) and not (used and window):
        return ()
    return tuple(LayerKind(window if used else 0, experts=one) for one in sparse)


def _write(config: ModelConfig) -> dict[str, Any]:
    (rope,) = config.ropes
    experts, window = experts_of(config), window_of(config)
    return {
        **llama.write_sizes(config),
        "hidden_act": ACTIVATIONS[config.activation],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": written_rope(rope, config.head_dim),
        "attention_bias": config.biases.q,
        "use_sliding_window": bool(window),
        "sliding_window": window or None,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.chosen,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.normalised,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [n for n, kind in enumerate(config.kinds) if not kind.experts],
        **write_balance(experts),
    }


def _read_gguf(file: GgufFile) -> dict[str, Any]:
    experts = gguf_experts(file, "expert_feed_forward_length")
    return {**llama.read_gguf(file), **_FIXED, "experts": experts}


FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    classifier="Qwen3MoeForSequenceClassification",
    names=Names(
        embedding="model.embed_tokens",
        layer="model.layers.{}",
        last_norm="model.norm",
        parts={
            **qwen3.PARTS,
            "router": "mlp.gate",
            "expert_gate": "mlp.experts.{}.gate_proj",
            "expert_up": "mlp.experts.{}.up_proj",
            "expert_down": "mlp.experts.{}.down_proj",
        },
    ),
    read=_read,
    write=_write,
    new={**_FIXED, "experts": Experts(128, 8, 768, balanced=True)},
    # Files have max_window_layers of Qwen2; here a window holds for all layers or for none.
    inert=frozenset({"attention_dropout", "max_window_layers"}),
    # Other models' options, which Qwen3-Coder's files say outright.
    only={
        "qkv_bias": one_of(False),
        "use_qk_norm": one_of(True),
        "shared_expert_intermediate_size": one_of(0, None),
    },
    gguf=GgufForm("qwen3moe", _read_gguf, experts=True),
)
