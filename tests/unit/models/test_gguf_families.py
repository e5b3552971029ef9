"""GGUF files of every family that the format has, written as llama.cpp's converter writes them.

The truth is the checkpoint that transformers made: what is imported from the file must have its
configuration and, bit for bit, its weights, and so its logits in transformers.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gguf_files import ARCHITECTURES, write_gguf
from plinth.models.families import FAMILIES
from plinth.models.gguf.model import GgufModel
from plinth.models.hf.folder import read_config
from plinth.models.importer import import_source
from plinth.shared.errors import InvalidArgument

SIZES: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.25],
    "long_factor": [2.0, 3.7],
}
GEMMA_LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
# transformers has no window where Mistral's configuration says none, and the format has none.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama, llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama, linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "granite": (
        "Granite",
        {
            **{"attention_multiplier": 0.3, "embedding_multiplier": 12.0},
            **{"residual_multiplier": 0.22, "logits_scaling": 3.0, "attention_bias": True},
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2, yarn with its own numbers": (
        "Qwen2",
        {"rope_parameters": {**YARN, "attention_factor": 1.5, "beta_fast": 16.0}},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma2": (
        "Gemma2",
        {
            **{"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6},
            **{"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0},
        },
    ),
    "gemma2, of 27B's layers": (
        "Gemma2",
        {
            **{"head_dim": 16, "query_pre_attn_scalar": 8, "sliding_window": 6},
            **{"num_hidden_layers": 46, "attention_bias": True},
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **{"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 6},
            "num_hidden_layers": 7,
        },
    ),
    "gemma3, linear": (
        "Gemma3",
        {
            **{"head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
            **{
                "sliding_window": 6,
                "final_logit_softcapping": 3.0,
                "rope_parameters": GEMMA_LINEAR,
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 9, "original_max_position_embeddings": 64}),
    "phi3, longrope": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32},
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "attention_bias": True}),
    "mixtral": (
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **{"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3},
            **{"moe_intermediate_size": 20, "norm_topk_prob": True},
        },
    ),
    "gpt2": ("GPT2", {}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "gpt_neox, in turn": (
        "GPTNeoX",
        {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
}
_CLASSES = {"Gemma3": "Gemma3Text", "GPT2": "GPT2"}


def checkpoint(folder: Path, case: str) -> Path:
    """The case's checkpoint, as transformers saves it, with gains and biases of any value."""
    kind, changes = CASES[case]
    sizes = dict(SIZES)
    if kind == "GPTNeoX":
        del sizes["num_key_value_heads"]
    if kind == "GPT2":
        kept = ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")
        sizes = {key: SIZES[key] for key in kept}
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = getattr(transformers, f"{_CLASSES.get(kind, kind)}Config")(**{**sizes, **changes})
    end = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}{end}")(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                # As a gain survives the converter's adding of 1.
                parameter.copy_(parameter.bfloat16())
    model.save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    ids = torch.randint(3, 260, (1, 48), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0]


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_the_original_configuration_and_weights(case: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "hf", case)
    path = write_gguf(folder, tmp_path / "model.gguf")
    made = import_source(str(path), tmp_path / "made").folder
    ours, theirs = read_config(made), read_config(folder)
    family = FAMILIES[theirs.family].gguf_as or theirs.family
    assert asdict(ours) == asdict(theirs) | {"family": family}
    assert torch.equal(logits(made), logits(folder))


def test_every_family_is_tried_whose_files_there_are() -> None:
    tried = {case.partition(",")[0] for case in CASES}
    named = {name for name, family in FAMILIES.items() if family.gguf or family.gguf_as}
    assert {name.removesuffix("_text") for name in named} == tried
    for name, family in FAMILIES.items():
        if family.gguf is not None:
            assert family.gguf.architecture == ARCHITECTURES.get(name, name)


@pytest.mark.parametrize(
    ("case", "extra", "kinds"),
    [
        ("gemma3", {"sliding_window_pattern": 3}, [6, 6, 0, 6, 6, 0, 6]),
        ("gemma3", {"sliding_window_pattern": [False] * 6 + [True]}, [0] * 6 + [6]),
        ("gemma3", {"sliding_window": 0}, [0] * 7),
        ("gemma2", {"sliding_window_pattern": 1}, [0, 0]),
        ("gemma2", {"sliding_window_pattern": [False, True]}, [0, 6]),
        ("phi3", {"sliding_window": 0}, [0, 0]),
    ],
)
def test_a_pattern_of_windows_is_read(
    case: str, extra: dict[str, Any], kinds: list[int], tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "hf", case)
    architecture = ARCHITECTURES.get("gemma3_text" if case == "gemma3" else case, case)
    changed = {f"{architecture}.attention.{key}": value for key, value in extra.items()}
    config = GgufModel(write_gguf(folder, tmp_path / "model.gguf", extra=changed)).config()
    assert [kind.window for kind in config.kinds] == kinds


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma3", {"attention.sliding_window": -1}, "gemma3.attention.sliding_window is -1"),
    ("gemma3", {"attention.sliding_window_pattern": [True]}, "sliding_window_pattern is .* of 7"),
    ("gemma3", {"attention.sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "gemma3.attn_logit_softcapping"),
    ("gemma2", {"attn_logit_softcapping": 0.0}, "gemma2.attn_logit_softcapping is 0.0"),
    ("gemma2", {"final_logit_softcapping": -1.0}, "gemma2.final_logit_softcapping is -1.0"),
    ("gemma2", {"rope.freq_base_swa": 1e6}, "gemma2.rope.freq_base_swa"),
    ("gemma3", {"rope.dimension_count": 8}, "gemma3.rope.dimension_count is 8, must be 16"),
    ("qwen2", {"attention.sliding_window": 16}, "qwen2.attention.sliding_window"),
    ("qwen2", {"rope.scaling.type": "yarn"}, "'qwen2.rope.scaling.factor' is missing"),
    ("qwen2, yarn", {"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5"),
    ("qwen2, yarn", {"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
    ("qwen2, yarn", {"rope.scaling.yarn_beta_slow": 64.0}, "yarn_beta_fast"),
    ("qwen2, yarn", {"rope.scaling.type": "dynamic"}, "'dynamic' is unknown"),
    ("qwen2, yarn", {"rope.scaling.type": "longrope"}, "'rope_factors_short.weight' is missing"),
    ("phi3, longrope", {"rope.dimension_count": 8}, r"'rope_factors_short.weight' is \[2\]"),
    ("phi3, longrope", {"rope.dimension_count": 3}, "phi3.rope.dimension_count is 3"),
    ("phi3, longrope", {"rope.scaling.attn_factor": float("nan")}, "phi3.rope.scaling.attn_factor"),
    ("olmo2", {"attention.sliding_window_pattern": [True, False]}, "sliding_window_pattern"),
    ("gpt_neox", {"use_parallel_residual": 1}, "use_parallel_residual"),
    ("gpt_neox", {"attention.head_count_kv": 2}, "gptneox.attention.head_count_kv is 2"),
    ("gpt2", {"attention.head_count_kv": 2}, "gpt2.attention.head_count_kv is 2"),
    ("mixtral", {"expert_used_count": 5}, "llama.expert_used_count: .*the 4 experts"),
    ("mixtral", {"expert_gating_func": 2}, "llama.expert_gating_func is 2"),
    ("qwen3_moe", {"expert_count": 0}, "architecture 'qwen3moe' is unknown"),
    ("qwen3_moe", {"expert_weights_norm": False}, "qwen3moe.expert_weights_norm is False"),
    ("qwen2", {"expert_count": 4}, "qwen2.expert_count is 4: architecture 'qwen2' with experts"),
    ("smollm3", {"rope.dimension_count": 4}, "smollm3.rope.dimension_count is 4"),
    ("granite", {"rope.scaling.finetuned": False}, "granite.rope.scaling.finetuned is False"),
    ("granite", {"logit_scale": 0.0}, "granite.logit_scale is 0.0"),
]


@pytest.mark.parametrize(("case", "extra", "words"), REFUSED)
def test_what_the_decoder_would_compute_otherwise_is_refused_by_name(
    case: str, extra: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "hf", case)
    name = read_config(folder).family
    architecture = ARCHITECTURES.get(name, name)
    changed = {f"{architecture}.{key}": value for key, value in extra.items()}
    with pytest.raises(InvalidArgument, match=words):
        GgufModel(write_gguf(folder, tmp_path / "model.gguf", extra=changed)).config()


def test_missing_and_foreign_tensors_are_refused_by_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "hf", "qwen3")
    lacking = write_gguf(folder, tmp_path / "a.gguf", without=("blk.1.attn_k_norm.weight",))
    with pytest.raises(InvalidArgument, match=r"model.layers.1.self_attn.k_norm.weight.*missing"):
        import_source(str(lacking), tmp_path / "made")
    other = write_gguf(folder, tmp_path / "b.gguf", architecture="qwen2")
    with pytest.raises(InvalidArgument, match=r"'blk.0.attn_[kq]_norm.weight' has no place"):
        import_source(str(other), tmp_path / "made")
