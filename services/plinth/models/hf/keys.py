"""Which keys of a Hugging Face `config.json` may stand there whatever the family, and why.

A key is read by the family; or inert, since it says nothing of what the decoder computes; or
inert at certain values. Any other is an error with its name: it might change the mathematics, and
a model that computes something else than its author's gives wrong answers without a sign. Needs no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from plinth.models.hf.file import WHERE
from plinth.models.hf.rules import KeyRule, one_of
from plinth.models.limits import shown
from plinth.shared.errors import InvalidArgument

if TYPE_CHECKING:
    from plinth.models.families.family import Family


def _wide_window(value: Any, config: Mapping[str, Any]) -> bool:
    context = config.get("max_position_embeddings", config.get("n_positions"))
    known = isinstance(value, int) and isinstance(context, int)
    return value is None or (known and not isinstance(value, bool) and value >= context)


def _names(value: Any, _: Mapping[str, Any]) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


# By `hf.config`, for every family.
_READ = {
    "model_type",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "auto_map",  # refused before this table is asked
    "quantization_config",  # likewise
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
    is_llama_config custom_pipelines model_name model_max_length tokenizer_model_max_length
    tokenizer_padding_side
"""
# How the same is computed, or what is handed out beside it.
_EXECUTION = """
    use_cache attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _flash_attn_2_enabled use_flash_attention torchscript
    use_bfloat16 output_attentions output_hidden_states return_dict output_past
    chunk_size_feed_forward tf_legacy_loss is_decoder tie_last_hidden_states cache_implementation
"""
_TRAINING = "initializer_range gradient_checkpointing neftune_noise_alpha"
_INERT = {*GENERATION, *f"{_TASKS} {_LABELS} {_BOOKKEEPING} {_EXECUTION} {_TRAINING}".split()}
_ONLY: Mapping[str, KeyRule] = {
    "architectures": KeyRule(_names, "a list of names"),
    "is_causal": one_of(True),
    "sliding_window": KeyRule(_wide_window, "null, or no smaller than the context"),
    "use_sliding_window": one_of(False, None),
    "attention_chunk_size": KeyRule(_wide_window, "null, or no smaller than the context"),
    "layer_types": KeyRule(
        lambda value, _: (
            value is None
            or (isinstance(value, list) and all(kind == "full_attention" for kind in value))
        ),
        "null, or a list of 'full_attention'",
    ),
    "per_layer_config": one_of(None, {}),
    "pruned_heads": one_of({}, None),
    "is_encoder_decoder": one_of(False),
    "add_cross_attention": one_of(False),
    "cross_attention_hidden_size": one_of(None),
    "tie_encoder_decoder": one_of(False),
}


def check_keys(config: Mapping[str, Any], asked: Set[str], family: Family) -> None:
    """Raise InvalidArgument for the first key that might change what this family computes. asked:
    the keys that it has read."""
    for key, value in config.items():
        if key in asked or key in _READ or key in _INERT or key in family.inert:
            continue
        rule = family.only.get(key) or _ONLY.get(key)
        if rule is None:
            raise InvalidArgument(
                f"{WHERE}: key {shown(key)} (here {shown(value)}) is unknown for model_type "
                f"{family.name!r} and might change what the model computes; remove it if it does "
                "not, else save the model as one that Plinth's decoder computes",
                field=str(key)[:80],
            )
        if not rule.holds(value, config):
            raise InvalidArgument(
                f"{WHERE}: {key} is {shown(value)}, which Plinth's {family.name} does not compute; "
                f"it must be {rule.wanted}",
                field=key,
            )
