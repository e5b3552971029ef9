"""Which keys of a Hugging Face `config.json` may stand there, by family, and why.

A key is read by `hf_config`; or inert, since it says nothing of what the decoder computes; or
inert at certain values. Any other is an error with its name: it might change the mathematics, and
a model that computes something else than its author's gives wrong answers without a sign. Needs no
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from plinth.models.limits import shown
from plinth.shared.errors import InvalidArgument


class KeyRule(NamedTuple):
    """What a key may be: `holds(value, config)`, in words `wanted`."""

    holds: Callable[[Any, Mapping[str, Any]], bool]
    wanted: str


def _one_of(*values: Any) -> KeyRule:
    return KeyRule(lambda value, _: value in values, " or ".join(repr(v) for v in values))


def _wide_window(value: Any, config: Mapping[str, Any]) -> bool:
    context = config.get("max_position_embeddings", config.get("n_positions"))
    known = isinstance(value, int) and isinstance(context, int)
    return value is None or (known and not isinstance(value, bool) and value >= context)


def _names(value: Any, _: Mapping[str, Any]) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


_READ = {
    "model_type",
    "vocab_size",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "auto_map",  # refused before this table is asked
    "quantization_config",  # likewise
}
_LLAMA_READ = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
}
_GPT2_READ = {
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
    "n_positions",
    "layer_norm_epsilon",
    "activation_function",
    # GPT2Config.attribute_map: other names of the same.
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
}
# What transformers' generation once kept in config.json; see `inherited_settings`.
GENERATION = tuple(
    [
        "max_length",
        "min_length",
        "max_new_tokens",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "output_scores",
        "return_dict_in_generate",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "decoder_start_token_id",
    ]
)
# What a task on top would add.
_TASKS = "sep_token_id task_specific_params prefix predict_special_tokens"
_LABELS = "id2label label2id num_labels _num_labels problem_type finetuning_task"
_BOOKKEEPING = """
    transformers_version _name_or_path name_or_path _commit_hash dtype torch_dtype tokenizer_class
    unsloth_version unsloth_fixed transformers.js_config peft_version max_sequence_length
    is_llama_config
"""
# How the same is computed, or what is handed out beside it.
_EXECUTION = """
    use_cache attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _flash_attn_2_enabled use_flash_attention torchscript
    use_bfloat16 output_attentions output_hidden_states return_dict output_past
    chunk_size_feed_forward tf_legacy_loss is_decoder tie_last_hidden_states
"""
_TRAINING = "initializer_range gradient_checkpointing"
_INERT = {*GENERATION, *f"{_TASKS} {_LABELS} {_BOOKKEEPING} {_EXECUTION} {_TRAINING}".split()}
# pretraining_tp cuts one product into a sum of products: another rounding, the same mathematics.
_LLAMA_INERT = {"attention_dropout", "pretraining_tp"}
# The summary is GPT2DoubleHeadsModel's second head; n_ctx is an old name of n_positions.
_GPT2_INERT = {
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "n_ctx",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
}
_ONLY: Mapping[str, KeyRule] = {
    "architectures": KeyRule(_names, "a list of names"),
    "is_causal": _one_of(True),
    "sliding_window": KeyRule(_wide_window, "null, or no smaller than the context"),
    "use_sliding_window": _one_of(False, None),
    "attention_chunk_size": KeyRule(_wide_window, "null, or no smaller than the context"),
    "layer_types": KeyRule(
        lambda value, _: (
            value is None
            or (isinstance(value, list) and all(kind == "full_attention" for kind in value))
        ),
        "null, or a list of 'full_attention'",
    ),
    "per_layer_config": _one_of(None, {}),
    "pruned_heads": _one_of({}, None),
    "is_encoder_decoder": _one_of(False),
    "add_cross_attention": _one_of(False),
    "cross_attention_hidden_size": _one_of(None),
    "tie_encoder_decoder": _one_of(False),
}
_LLAMA_ONLY: Mapping[str, KeyRule] = {
    "rope_interleaved": _one_of(False),
    "partial_rotary_factor": _one_of(1.0, None),
    "qk_norm": _one_of(False, None),
    "use_qk_norm": _one_of(False, None),
}
_GPT2_ONLY: Mapping[str, KeyRule] = {
    "scale_attn_weights": _one_of(True),
    "scale_attn_by_inverse_layer_idx": _one_of(False),
    "reorder_and_upcast_attn": _one_of(False),
}
_FAMILIES: Mapping[str, tuple[set[str], Mapping[str, KeyRule]]] = {
    "llama": (_READ | _LLAMA_READ | _INERT | _LLAMA_INERT, {**_ONLY, **_LLAMA_ONLY}),
    "gpt2": (_READ | _GPT2_READ | _INERT | _GPT2_INERT, {**_ONLY, **_GPT2_ONLY}),
}


def check_keys(config: Mapping[str, Any], family: str, where: str) -> None:
    """Raise InvalidArgument for the first key that might change what this family computes."""
    free, only = _FAMILIES[family]
    for key, value in config.items():
        if key in free:
            continue
        rule = only.get(key)
        if rule is None:
            raise InvalidArgument(
                f"{where}: key {shown(key)} (here {shown(value)}) is unknown for model_type "
                f"{family!r} and might change what the model computes; remove it if it does not, "
                "else save the model as one that Plinth's decoder computes",
                field=str(key)[:80],
            )
        if not rule.holds(value, config):
            raise InvalidArgument(
                f"{where}: {key} is {shown(value)}, which Plinth's {family} does not compute; "
                f"it must be {rule.wanted}",
                field=key,
            )
