"""GGUF files as llama.cpp's converter makes them of checkpoints that transformers saved.

What the converter does is written down here from its source (conversion/ in llama.cpp); names of
tensors come from the table of the `gguf` package.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import transformers
from gguf.quants import quantize
from tokenizers import Tokenizer

from checkpoints import SPECIAL_TOKENS, byte_tokenizer

ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
    "qwen3_moe": "qwen3moe",
}
_BY_NAME = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
_vocabulary: list[str] = []


def byte_vocabulary(folder: Path) -> list[str]:
    """The tokens of `byte_tokenizer` in the order of their ids."""
    if not _vocabulary:
        tokens = Tokenizer.from_file(str(byte_tokenizer(folder) / "tokenizer.json")).get_vocab()
        _vocabulary.extend(sorted(tokens, key=tokens.__getitem__))
    return _vocabulary


@functools.cache
def _loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def write_gguf(
    folder: Path,
    path: Path,
    *,
    kind: str = "F32",
    architecture: str | None = None,
    pre: str = "smollm",
    extra: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tokenizer_model: str = "gpt2",
) -> Path:
    """What the converter makes of a checkpoint with the tokenizer of bytes.

    extra: metadata in place of the converter's, or beside it. without: keys and tensors that are
    left out.
    """
    model = _loaded(folder)
    config = model.config
    family = ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture or family)
    for key, value in _metadata(config).items():
        _add(writer, f"{architecture or family}.{key}", value)
    _add_vocabulary(writer, path, pre, tokenizer_model)
    for key, value in (extra or {}).items():
        writer.kv_data[0].pop(key, None)
        _add(writer, key, value)
    for key in without:
        writer.kv_data[0].pop(key, None)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, values in _tensors(model, family):
        if name not in without:
            storage = wanted if values.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, quantize(values, storage), raw_dtype=storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_int64, float: writer.add_float64}
    kinds |= {str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)


def _add_vocabulary(writer: gguf.GGUFWriter, path: Path, pre: str, tokenizer_model: str) -> None:
    names = [*byte_vocabulary(path.parent / "tok"), "he"]
    writer.add_tokenizer_model(tokenizer_model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in names])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)


def _metadata(config: Any) -> dict[str, Any]:
    """TextModel.set_gguf_parameters, and what some architectures do in its place."""
    found = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
    }
    family = config.model_type
    if family == "gpt2":
        return found | {"attention.layer_norm_epsilon": config.layer_norm_epsilon}
    if family == "gpt_neox":
        head = config.hidden_size // config.num_attention_heads
        return found | {
            "attention.layer_norm_epsilon": config.layer_norm_eps,
            "use_parallel_residual": config.use_parallel_residual,
            "rope.dimension_count": int(head * config.rope_parameters["partial_rotary_factor"]),
        }
    found["attention.head_count_kv"] = config.num_key_value_heads
    found["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    rope = config.rope_parameters
    if family == "phi3":
        return found | _phi3(config, rope)
    if family == "gemma2":  # whose converter says nothing of the rope
        return found | _gemma2(config)
    if family == "gemma3_text":
        found["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
        found["attention.sliding_window"] = config.sliding_window
        if config.final_logit_softcapping:
            found["final_logit_softcapping"] = config.final_logit_softcapping
        rope = rope["full_attention"]
    if getattr(config, "num_local_experts", None):
        found["expert_count"] = config.num_local_experts
        found["expert_used_count"] = config.num_experts_per_tok
    if family == "qwen3_moe":
        found["expert_feed_forward_length"] = config.moe_intermediate_size
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if family not in ("qwen2", "olmo2", "granite"):
        found |= {"attention.key_length": head, "attention.value_length": head}
    if family == "granite":
        found["attention.scale"] = config.attention_multiplier
        found["embedding_scale"] = config.embedding_multiplier
        found["residual_scale"] = config.residual_multiplier
        found["logit_scale"] = config.logits_scaling
    if family in ("llama", "granite", "mistral", "mixtral", "smollm3"):
        found |= {"rope.dimension_count": head, "vocab_size": config.vocab_size}
    return found | {"rope.freq_base": rope["rope_theta"]} | _scaling(rope)


def _gemma2(config: Any) -> dict[str, Any]:
    return {
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "attention.sliding_window": config.sliding_window,
    }


def _phi3(config: Any, rope: dict[str, Any]) -> dict[str, Any]:
    found = {
        "rope.dimension_count": int(rope["partial_rotary_factor"] * config.hidden_size)
        // config.num_attention_heads,
        "rope.scaling.original_context_length": config.original_max_position_embeddings,
        "rope.freq_base": rope["rope_theta"],
        "attention.sliding_window": config.sliding_window or 0,
    }
    if "long_factor" in rope:
        original = config.original_max_position_embeddings
        scale = config.max_position_embeddings / original
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        found["rope.scaling.attn_factor"] = attention
    return found


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
    if kind != "yarn":
        return {}
    original = rope["original_max_position_embeddings"]
    found = {
        "rope.scaling.type": kind,
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": original,
    }
    names = {"attention_factor": "attn_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow"}
    for ours, theirs in names.items():
        if rope.get(ours) is not None:
            found[f"rope.scaling.yarn_{theirs}"] = float(rope[ours])
    return found


def _tensors(model: Any, family: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values; the converter's modify_tensors and generate_extra_tensors."""
    config = model.config
    names = gguf.get_tensor_name_map(_BY_NAME[family], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = _modified(name, tensor.float().numpy(), config)
        for part, rows in _stacked(name, values, config.model_type):
            theirs = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert theirs is not None, part
            yield theirs, np.ascontiguousarray(rows)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _divisors(config, rope)
    for length in ("long", "short"):
        if family == "phi3" and f"{length}_factor" in rope:
            factors = np.array(rope[f"{length}_factor"], dtype=np.float32)
            yield f"rope_factors_{length}.weight", factors


def _modified(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    family = config.model_type
    if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if family in ("gemma2", "gemma3_text") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if family == "gpt_neox" and "query_key_value" in name:
        heads = config.num_attention_heads
        each = values.reshape(heads, 3, values.shape[0] // heads // 3, *values.shape[1:])
        return np.concatenate([each[:, n].reshape(-1, *values.shape[1:]) for n in range(3)])
    if family in ("llama", "granite", "mistral", "mixtral", "smollm3"):
        if "q_proj" in name:
            return permute(values, config.num_attention_heads)
        if "k_proj" in name:
            return permute(values, config.num_key_value_heads)
    return values


def _stacked(name: str, values: np.ndarray, family: str) -> Iterator[tuple[str, np.ndarray]]:
    """transformers has experts' gates and ups as one tensor, [experts, 2 * width, hidden]."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        yield (
            name.replace("mlp.gate.weight", "block_sparse_moe.gate.weight")
            if (family == "mixtral")
            else name,
            values,
        )
        return
    stem = name.rpartition(".")[0]
    if name.endswith("down_proj"):
        yield f"{stem}.down_proj.weight", values
        return
    gate, up = np.split(values, 2, axis=1)
    yield f"{stem}.gate_proj.weight", gate
    yield f"{stem}.up_proj.weight", up


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """As LlamaModel.permute has it."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def _divisors(config: Any, rope: dict[str, Any]) -> np.ndarray:
    """Llama 3.1's rule as LlamaModel.generate_extra_tensors has it: one divisor per frequency."""
    head = config.head_dim
    low, high, factor = (rope[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    found = []
    for pair in range(head // 2):
        length = 2 * math.pi * rope["rope_theta"] ** (2 * pair / head)
        if length < 8192 / high:
            found.append(1.0)
        elif length > 8192 / low:
            found.append(factor)
        else:
            smooth = (8192 / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)
