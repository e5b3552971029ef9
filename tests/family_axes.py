"""What the `config.json` of each family can say: a list of axes, each a list of alternatives.

An alternative is keys of the file, or a function that makes them of the keys chosen before.
`families.configurations` draws from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Keys = dict[str, Any]
Alternative = Keys | Callable[[Keys], Keys]
Axis = Sequence[Alternative]

ORIGINAL = 48  # context of the training, where a rope rule has one


def _axis(key: str, *values: Any) -> Axis:
    return [{key: value} for value in values]


def _shape(hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int) -> Keys:
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
    }


_TIED = _axis("tie_word_embeddings", True, False)
_BIAS = _axis("attention_bias", False, True)
_MLP_BIAS = _axis("mlp_bias", True, False)
_EPS = _axis("rms_norm_eps", 1e-5, 1e-3)
_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "gelu_new", "swish")
_ACT = _axis("hidden_act", *_ACTIVATIONS)
# Odd numbers of heads, one KV head, as many as heads, and between; heads that are no share of the
# model's width.
_SHAPES = (
    _shape(32, 4, 2, 8, 40),
    _shape(40, 5, 1, 16, 24),
    _shape(24, 3, 3, 8, 33),
    _shape(36, 6, 3, 12, 56),
)
# With the wider weights of the others squared activations are more than 1e-4 apart from their
# value in double precision.
_SMALLER = _axis("initializer_range", 0.2)
# Of experts, whose rows transformers' product of groups wants in steps of 16 bytes.
_GROUPED = tuple(
    size | {"intermediate_size": size["intermediate_size"] // 4 * 4} for size in _SHAPES
)
# Where heads share the width.
_DIVIDED = (
    _shape(32, 4, 2, 8, 40),
    _shape(60, 5, 1, 12, 24),
    _shape(24, 3, 3, 8, 33),
    _shape(96, 6, 3, 16, 56),
)

# Gemma 2 and 3 have it that the width divides by the heads, though theirs has a key.
_GEMMA_SHAPES = (
    _shape(32, 4, 2, 16, 40),
    _shape(40, 5, 1, 16, 24),
    _shape(24, 3, 3, 8, 33),
    _shape(36, 6, 3, 10, 56),
)


def _scaled(kind: str, **numbers: Any) -> Callable[[Keys], Keys]:
    return lambda _: {"rope_type": kind, **numbers}


def _longrope(share: float = 1.0, **numbers: Any) -> Callable[[Keys], Keys]:
    def made(keys: Keys) -> Keys:
        pairs = int(keys["head_dim"] * share) // 2
        return {
            "rope_type": "longrope",
            "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
            "long_factor": [1.5 + 0.7 * i for i in range(pairs)],
            "original_max_position_embeddings": ORIGINAL,
            **numbers,
        }

    return made


_RULES: tuple[Callable[[Keys], Keys], ...] = (
    _scaled("default", rope_theta=10000.0),
    _scaled("yarn", factor=4.0, original_max_position_embeddings=16),
    _longrope(),
    _scaled("llama3", factor=8.0, low_freq_factor=0.5, high_freq_factor=2.0, rope_theta=100.0),
    _scaled("linear", factor=3.0, rope_theta=50.0),
    _scaled("dynamic", factor=2.0),
    _scaled("yarn", factor=8.0, mscale=0.8, mscale_all_dim=0.3, truncate=False, beta_fast=4.0),
    _scaled("yarn", factor=2.0, attention_factor=1.3, beta_slow=0.5, beta_fast=2.0),
    _longrope(attention_factor=1.2, factor=5.0),
)
_ROPES: Axis = [
    lambda keys, rule=rule: {"rope_parameters": {"rope_theta": 10000.0} | rule(keys)}
    for rule in _RULES
]
_SLIDES, _FULL = "sliding_attention", "full_attention"
# Qwen's way to say windows.
_FROM_A_LAYER: Axis = [
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 1},
    {"use_sliding_window": True, "sliding_window": 7, "layer_types": [_SLIDES, _FULL, _SLIDES]},
    {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 9},  # from layer 28 on: none
]


def _gemma3_ropes(full: Keys, sliding: Keys) -> Keys:
    default = {"rope_type": "default"}
    return {"rope_parameters": {_FULL: default | full, _SLIDES: default | sliding}}


def _neox_rope(share: float, rule: Keys) -> Keys:
    default = {"rope_type": "default", "rope_theta": 10000.0}
    return {"rope_parameters": default | {"partial_rotary_factor": share} | rule}


AXES: Mapping[str, Sequence[Axis]] = {
    "llama": (_SHAPES, _TIED, _BIAS, _MLP_BIAS, _EPS, _ACT, _ROPES),
    "mistral": (_SHAPES, _TIED, _EPS, _ACT, _ROPES, _axis("sliding_window", 5, None, 16)),
    "qwen2": (_SHAPES, _TIED, _EPS, _ACT, _ROPES, _FROM_A_LAYER),
    "qwen3": (_SHAPES, _TIED, _BIAS, _EPS, _ACT, _ROPES, _FROM_A_LAYER),
    "granite": (
        *(_SHAPES, _TIED, _BIAS, _MLP_BIAS, _EPS, _ACT, _ROPES),
        _axis("attention_multiplier", 0.15, 0.05, 0.4),
        _axis("embedding_multiplier", 12.0, 1.0, 3),
        _axis("residual_multiplier", 0.22, 1.0, 1.5),
        _axis("logits_scaling", 8.0, 1.0, 2.5, 49.0),
    ),
    "gemma2": (
        _GEMMA_SHAPES,
        _TIED,
        _BIAS,
        _EPS,
        _axis("hidden_activation", *_ACTIVATIONS),
        _ROPES,
        _axis("query_pre_attn_scalar", 16, 20),
        _axis("attn_logit_softcapping", 1.5, None, 50.0),
        _axis("final_logit_softcapping", 2.0, None, 30.0),
        [
            {"sliding_window": 5},  # every other layer
            {"sliding_window": 7, "layer_types": [_FULL, _SLIDES, _SLIDES]},
            {"sliding_window": 16, "layer_types": [_SLIDES] * 3},
            {"sliding_window": 8, "layer_types": [_FULL] * 3},
        ],
    ),
    "gemma3_text": (
        _GEMMA_SHAPES,
        _TIED,
        _BIAS,
        _EPS,
        _axis("hidden_activation", *_ACTIVATIONS),
        _axis("query_pre_attn_scalar", 16, 20),
        _axis("final_logit_softcapping", None, 2.0),
        [
            {"sliding_window": 5, "layer_types": [_SLIDES, _FULL, _SLIDES]},
            {"sliding_window": 8, "layer_types": [_FULL] * 3},
            {"sliding_window": 6, "sliding_window_pattern": 2},
            {"sliding_window": 16},  # pattern 6: all of them
        ],
        [
            _gemma3_ropes(
                {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, {"rope_theta": 1e4}
            ),
            _gemma3_ropes({"rope_theta": 500.0}, {"rope_theta": 50.0}),
            _gemma3_ropes({"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}, {}),
            _gemma3_ropes(
                {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0},
                {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
            ),
            {},
        ],
    ),
    "phi3": (
        _DIVIDED,
        _TIED,
        _EPS,
        _ACT,
        _axis("sliding_window", None, 5, 16),
        [
            lambda keys: {
                "original_max_position_embeddings": ORIGINAL,
                "rope_parameters": _longrope()(keys) | {"rope_theta": 10000.0},
            },
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
            lambda keys: {
                "original_max_position_embeddings": ORIGINAL,
                "rope_parameters": {
                    **_longrope(0.5)(keys),
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                },
            },
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
        ],
    ),
    "olmo2": (_SHAPES, _TIED, _BIAS, _EPS, _ACT, _ROPES),
    "mixtral": (
        _GROUPED,
        _SMALLER,
        _TIED,
        _EPS,
        _ACT,
        _ROPES,
        _axis("sliding_window", None, 5, 16),
        [
            {"num_local_experts": 5, "num_experts_per_tok": 2},
            {"num_local_experts": 1, "num_experts_per_tok": 1},
            {"num_local_experts": 3, "num_experts_per_tok": 3},
            {"num_local_experts": 8, "num_experts_per_tok": 1},
        ],
    ),
    "qwen3_moe": (
        _SHAPES,
        _TIED,
        _BIAS,
        _EPS,
        _ACT,
        _ROPES,
        _axis("norm_topk_prob", True, False),
        [
            {"use_sliding_window": True, "sliding_window": 5},
            {"use_sliding_window": False, "sliding_window": 5},
        ],
        [
            {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 20},
            {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 36},
            {"num_experts": 9, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
        ],
        # Layers with a plain MLP: the second, none, those whose number is odd, all.
        [
            {"mlp_only_layers": [1]},
            {},
            {"decoder_sparse_step": 2},
            {"mlp_only_layers": [0, 1, 2]},
        ],
    ),
    "smollm3": (
        _SHAPES,
        _TIED,
        _BIAS,
        _MLP_BIAS,
        _EPS,
        _ACT,
        _ROPES,
        [
            {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5},
            {"no_rope_layer_interval": 2},
            {},  # interval 4: all turn
            {
                "no_rope_layers": [0, 1, 1],
                "use_sliding_window": True,
                "sliding_window": 7,
                "layer_types": [_FULL, _SLIDES, _SLIDES],
            },
            {"no_rope_layers": [0, 0, 0], "sliding_window": 7},
        ],
    ),
    "gpt2": (
        [
            {"n_embd": 32, "n_head": 4, "n_inner": None},
            {"n_embd": 30, "n_head": 5, "n_inner": 41},
            {"n_embd": 27, "n_head": 3, "n_inner": 24},
        ],
        _TIED,
        _axis("layer_norm_epsilon", 1e-5, 1e-3),
        _axis("activation_function", "gelu_new", *_ACTIVATIONS[:5]),
    ),
    "gpt_neox": (
        [
            {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 40, "head_dim": 32},
            {"hidden_size": 80, "num_attention_heads": 5, "intermediate_size": 33, "head_dim": 16},
            {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 56, "head_dim": 8},
        ],
        _TIED,
        _BIAS,
        _axis("use_parallel_residual", True, False),
        _axis("layer_norm_eps", 1e-5, 1e-3),
        _axis("hidden_act", "gelu", "gelu_new", "silu", "relu", "relu2"),
        [
            _neox_rope(0.25, {}),
            _neox_rope(0.5, {"rope_type": "linear", "factor": 3.0}),
            _neox_rope(1.0, {"rope_type": "yarn", "factor": 4.0}),
            _neox_rope(0.5, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}),
            lambda keys: _neox_rope(0.5, _longrope(0.5)(keys)),
        ],
    ),
}
# Of the smallest model: transformers' own numbers are for a large one.
FEW_EXPERTS: Mapping[str, Keys] = {
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
# Whose files have no key for the width of a head, which the axes speak of.
DIVIDED = ("phi3", "gpt_neox")
