"""config.json of well-known models, as the hub has them; those of `hub_configs.json` shrunk and
compared with transformers too."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import families
from family_models import config_of, ids_of, logits_of, random_model, saved
from plinth.models.config import LayerKind
from plinth.models.families import FAMILIES
from plinth.models.hf import config as hf_config
from plinth.models.parts import Biases
from plinth.models.rope import Rope
from plinth.models.weights import load_decoder
from plinth.shared.errors import InvalidArgument

_COMMON: dict[str, Any] = {"torch_dtype": "bfloat16", "transformers_version": "4.50.0"}
# config.json as the hub has it (the lists of LongRoPE made up), and what of it must come out.
HUB: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Mistral-7B-v0.1": (
        {
            **{"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
            **{"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096},
            **{"initializer_range": 0.02, "intermediate_size": 14336, "rms_norm_eps": 1e-05},
            **{"max_position_embeddings": 32768, "num_attention_heads": 32},
            **{"num_hidden_layers": 32, "num_key_value_heads": 8, "rope_theta": 10000.0},
            **{"sliding_window": 4096, "tie_word_embeddings": False, "use_cache": True},
            "vocab_size": 32000,
        },
        {"layer_kinds": (LayerKind(4096),) * 32},
    ),
    "Qwen2.5-0.5B": (
        {
            **{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0},
            **{"bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu"},
            **{"hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864},
            **{"max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2"},
            **{"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2},
            **{"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768},
            **{"tie_word_embeddings": True, "use_cache": True, "use_mrope": False},
            **{"use_sliding_window": False, "vocab_size": 151936},
        },
        {"layer_kinds": (), "head_dim": 64, "biases": Biases(q=True, k=True, v=True)},
    ),
    "Qwen3-0.6B": (
        {
            **{"architectures": ["Qwen3ForCausalLM"], "attention_bias": False},
            **{"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645},
            **{"head_dim": 128, "hidden_act": "silu", "hidden_size": 1024},
            **{"initializer_range": 0.02, "intermediate_size": 3072, "model_type": "qwen3"},
            **{"max_position_embeddings": 40960, "max_window_layers": 28},
            **{"num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8},
            **{"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000},
            **{"sliding_window": None, "tie_word_embeddings": True, "use_cache": True},
            **{"use_sliding_window": False, "vocab_size": 151936},
        },
        {"layer_kinds": (), "head_dim": 128, "qk_norm": "head"},
    ),
    "gemma-3-1b-it": (
        {
            **{"architectures": ["Gemma3ForCausalLM"], "attention_bias": False},
            **{"attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2},
            **{"cache_implementation": "hybrid", "eos_token_id": [1, 106]},
            **{"final_logit_softcapping": None, "head_dim": 256, "hidden_size": 1152},
            **{"hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02},
            **{"intermediate_size": 6912, "max_position_embeddings": 32768},
            **{"model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26},
            **{"num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256},
            **{"rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None},
            **{"rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6},
            **{"use_cache": True, "vocab_size": 262144},
        },
        {
            "layer_kinds": ((LayerKind(512, 1),) * 5 + (LayerKind(),)) * 4
            + (LayerKind(512, 1),) * 2,
            "ropes": (Rope(1e6), Rope(1e4)),
            "tie_embeddings": True,
        },
    ),
    "Phi-3-mini-128k-instruct": (
        {
            **{"architectures": ["Phi3ForCausalLM"], "attention_bias": False},
            "auto_map": {
                "AutoConfig": "configuration_phi3.Phi3Config",
                "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            },
            **{"attention_dropout": 0.0, "bos_token_id": 1, "embd_pdrop": 0.0},
            **{"eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072},
            **{"initializer_range": 0.02, "intermediate_size": 8192, "model_type": "phi3"},
            **{"max_position_embeddings": 131072, "num_attention_heads": 32},
            **{"num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 32000},
            **{"original_max_position_embeddings": 4096, "resid_pdrop": 0.0},
            "rope_scaling": {
                "long_factor": [1.5] * 48,
                "short_factor": [1.1] * 48,
                "type": "longrope",
            },
            **{"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 262144},
            **{"tie_word_embeddings": False, "use_cache": True, "vocab_size": 32064},
        },
        {"head_dim": 96},
    ),
    "OLMo-2-0425-1B": (
        {
            **{"architectures": ["Olmo2ForCausalLM"], "attention_bias": False},
            **{"attention_dropout": 0.0, "eos_token_id": 100257, "hidden_act": "silu"},
            **{"hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192},
            **{"max_position_embeddings": 4096, "model_type": "olmo2"},
            **{"num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16},
            **{"pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None},
            **{"rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352},
        },
        {"norms": "after", "qk_norm": "projection"},
    ),
    "SmolLM3-3B": (
        {
            **{"architectures": ["SmolLM3ForCausalLM"], "attention_bias": False},
            **{"attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128012},
            **{"hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02},
            **{"intermediate_size": 11008, "layer_types": ["full_attention"] * 36},
            **{"max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False},
            **{"model_type": "smollm3", "no_rope_layer_interval": 4},
            **{"no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16},
            **{"num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004},
            **{"pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None},
            **{"rope_theta": 5000000.0, "sliding_window": None, "use_cache": False},
            **{"use_sliding_window": False, "vocab_size": 128256},
        },
        {"layer_kinds": ((LayerKind(),) * 3 + (LayerKind(rope=None),)) * 9},
    ),
    "pythia-70m": (
        {
            **{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0},
            **{"hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02},
            **{"intermediate_size": 2048, "layer_norm_eps": 1e-05, "model_type": "gpt_neox"},
            **{"max_position_embeddings": 2048, "num_attention_heads": 8},
            **{"num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25},
            **{"tie_word_embeddings": False, "use_cache": True, "vocab_size": 50304},
            "use_parallel_residual": True,
        },
        {"ropes": (Rope(10000.0, 16),), "parallel": True},
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_files_of_the_hub_open(name: str) -> None:
    content, fields = HUB[name]
    config = hf_config.from_hf(content | _COMMON)
    for field, value in fields.items():
        assert getattr(config, field) == value, field
    assert hf_config.from_hf(json.loads(json.dumps(hf_config.to_hf(config)))) == config


def test_code_of_a_checkpoints_own_is_refused_whatever_its_family() -> None:
    content = HUB["Phi-3-mini-128k-instruct"][0]
    for auto_map in (
        {"AutoModelForCausalLM": "modeling_phi3.MyPhi3ForCausalLM"},
        {"AutoModelForCausalLM": "modeling_phi3.LlamaForCausalLM"},
        ["modeling_phi3.Phi3ForCausalLM"],
        {"AutoModelForCausalLM": ["modeling_phi3.Phi3ForCausalLM"]},
    ):
        with pytest.raises(InvalidArgument, match="runs none"):
            hf_config.from_hf(content | {"auto_map": auto_map})


# Of other models, and as those who fine-tune write them (the lists of LongRoPE made up).
MORE: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("hub_configs.json").read_text(encoding="utf-8")
)
# Tokens that they are for, where that is not max_position_embeddings.
REACH = {
    "deepseek-coder-6.7b-instruct": 4 * 16384,
    "Yarn-Mistral-7b-128k": 16 * 8192,
    "Qwen2.5-7B-Instruct, long by its card": 4 * 32768,
    "Qwen3-8B, long by its card": 4 * 32768,
    "SmolLM3-3B, long by its card": 2 * 65536,
}


def _smaller(content: dict[str, Any], share: float) -> dict[str, Any]:
    """With lengths at a share of what they are."""
    lengths = ("original_max_position_embeddings", "sliding_window")
    return {
        key: max(4, int(value * share)) if key in lengths and value else value
        for key, value in content.items()
    }


def shrunk(content: dict[str, Any]) -> dict[str, Any]:
    """The same keys with small sizes: 64 tokens, 96 words, few layers, heads of 16 features, as
    many heads for each KV head as before."""
    small = copy.deepcopy(content) | {"vocab_size": 96}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        small[key] = None
    if content["model_type"] == "gpt2":
        return small | {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_inner": 96}
    layers = 6 if content["model_type"] == "gemma3_text" else 4
    heads, kv = content["num_attention_heads"], content.get("num_key_value_heads")
    groups = heads // kv if kv else 1
    small |= {"num_hidden_layers": layers, "num_attention_heads": 2 * groups}
    small |= {"num_key_value_heads": 2} if kv else {}
    small |= {"hidden_size": 32 * groups, "intermediate_size": 48}
    small |= {"head_dim": 16} if content.get("head_dim") else {}
    small |= {"moe_intermediate_size": 16} if "moe_intermediate_size" in content else {}
    for key in ("layer_types", "no_rope_layers"):
        small |= {key: content[key][:layers]} if key in content else {}
    share = 64 / content["max_position_embeddings"]
    small = _smaller(small, share) | {"max_position_embeddings": 64}
    rope = content.get("rope_scaling")
    if rope:
        pairs = int(16 * content.get("partial_rotary_factor", 1)) // 2
        short = {k: v[:pairs] if isinstance(v, list) else v for k, v in rope.items()}
        small["rope_scaling"] = _smaller(short, share)
    return small


@pytest.mark.parametrize("name", MORE)
def test_files_of_the_hub_compute_what_transformers_does(name: str, tmp_path: Path) -> None:
    content = MORE[name]
    config = hf_config.from_hf(content)
    told = content.get("max_position_embeddings", content.get("n_positions"))
    assert config.context == REACH.get(name, told)
    assert hf_config.from_hf(json.loads(json.dumps(hf_config.to_hf(config)))) == config
    keys = shrunk(content)
    large = {} if "n_embd" in keys else {"initializer_range": 0.15}
    family = str(content["model_type"])
    folder = saved(random_model(family, keys | large | {"dtype": "float32"}), tmp_path)
    (folder / "config.json").write_text(json.dumps(keys))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about lengths that are fit for a test alone
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for length in (3, 20, 64):
        ids_bt = ids_of(1, length)
        with torch.no_grad():
            truth = model.eval()(ids_bt).logits
            ours = logits_of(load_decoder(folder), ids_bt)
        assert float(truth.std()) > 0.1
        torch.testing.assert_close(ours, truth, atol=1e-4, rtol=0)


def test_a_scale_that_programs_differ_over_is_refused() -> None:
    """As DeepSeek-R1-0528-Qwen3-8B has it: transformers passes it by, vLLM multiplies by it."""
    content = MORE["Qwen3-8B, long by its card"]
    rope = content["rope_scaling"] | {"attn_factor": 0.878}
    with pytest.raises(InvalidArgument, match=r"rope_scaling\.attn_factor .*attention_factor"):
        hf_config.from_hf(content | {"rope_scaling": rope})


# What programs that tune, merge or load a model leave in its file: nothing that it computes.
LEFT_BEHIND: dict[str, Any] = {
    **{"unsloth_version": "2025.10.1", "unsloth_fixed": True, "model_name": "unsloth/x"},
    **{"_name_or_path": "x", "_attn_implementation": "sdpa", "attn_implementation": "eager"},
    **{"_attn_implementation_autoset": True, "transformers_version": "5.23.0"},
    **{"torch_dtype": "bfloat16", "dtype": "float32", "use_cache": False},
    **{"quantization_config": None, "pad_token_id": 5, "eos_token_id": [1, 2]},
    **{"model_max_length": 32, "tokenizer_padding_side": "left", "neftune_noise_alpha": 5},
    **{"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_programs_leave_behind_changes_nothing(family: str) -> None:
    keys = families.smallest(family)
    plain = json.loads(config_of(family, keys).to_json_string(use_diff=False))
    config = hf_config.from_hf(plain)
    ids = {"pad_id": 5, "eos_ids": (1, 2)}
    assert hf_config.from_hf(plain | LEFT_BEHIND) == replace(config, **ids)
