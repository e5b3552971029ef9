"""The fields that Plinth does not have and knows all the same, and what becomes of each.

They are all of OpenAI's schema, and what vLLM's and llama.cpp's servers take beside it:
https://platform.openai.com/docs/api-reference,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html,
https://github.com/ggml-org/llama.cpp/tree/master/tools/server.
"""

from __future__ import annotations

import json
from typing import Any

from plinth.gateway.openai.field_rules import FieldRule, Rules


def _only(*values: Any, why: str = "") -> FieldRule:
    """Any of `values` says what happens anyway."""
    shown = " or ".join(_json(value) for value in values)
    return FieldRule(
        lambda value: any(_same(value, one) for one in values), why or f"only {shown} is supported"
    )


def _nothing(why: str = "it is not supported") -> FieldRule:
    """An empty list, object or text, false and 0 say what happens anyway."""
    return FieldRule(lambda value: not value, why)


_NULL = FieldRule(lambda _: False, "it is not supported")
_TAKEN = FieldRule(lambda _: True)  # no answer depends on it, whatever it says
_TOLD = FieldRule(lambda value: not value)


def _same(value: Any, wanted: Any) -> bool:
    """JSON's equality: true is not 1, but 1 is 1.0."""
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(value: Any) -> str:
    return json.dumps(value)


def _no_bias(value: Any) -> bool:
    return not value or (isinstance(value, dict) and not any(value.values()))


_NO_TOOLS = "tools are not supported"
_NO_GRAMMAR = "answers are not held to a form; say in the prompt which one you want"

COMMON: Rules = {
    # OpenAI's.
    "presence_penalty": _only(0),
    "frequency_penalty": _only(0),
    "logit_bias": FieldRule(_no_bias, "it is not supported"),
    "metadata": _TAKEN,
    # Other servers' sampling.
    "min_p": _only(0),
    "typical_p": _only(1),
    "tfs_z": _only(1),
    "top_a": _only(0),
    "repetition_penalty": _only(1),
    "repeat_penalty": _only(1),
    "repeat_last_n": _TAKEN,  # of a penalty that is 1
    "length_penalty": _only(1),
    "use_beam_search": _only(False),
    "early_stopping": _only(False),
    "mirostat": _only(0),
    "mirostat_tau": _TAKEN,  # of what is off
    "mirostat_eta": _TAKEN,
    "dynatemp_range": _only(0),
    "dynatemp_exponent": _TAKEN,
    "dry_multiplier": _only(0),
    "dry_base": _TAKEN,
    "dry_allowed_length": _TAKEN,
    "dry_penalty_last_n": _TAKEN,
    "dry_sequence_breakers": _TAKEN,
    "xtc_probability": _only(0),
    "xtc_threshold": _TAKEN,
    "no_repeat_ngram_size": _only(0),
    "top_n_sigma": FieldRule(
        lambda value: _number(value) and value <= 0, "only -1 (off) is supported"
    ),
    "adaptive_target": FieldRule(
        lambda value: _number(value) and value < 0, "only -1 (off) is supported"
    ),
    "adaptive_decay": _TAKEN,  # of what is off
    "samplers": FieldRule(
        lambda _: False, "temperature, top_k and top_p act in an order of their own"
    ),
    "min_keep": _only(0),
    "watermarking": _only(False),
    "repetition_detection": FieldRule(
        lambda _: False, "an answer ends by itself, a stop or its length"
    ),
    "n_predict": FieldRule(lambda _: False, "say max_tokens"),
    "n_indent": _only(0),
    "n_cmpl": _only(1, why="say n"),
    "t_max_predict_ms": FieldRule(
        lambda value: _number(value) and value <= 0, "time is bounded by gateway.request_deadline_s"
    ),
    "do_sample": FieldRule(lambda value: value is True, "say temperature: 0 for a greedy answer"),
    "num_beams": _only(1),
    "min_tokens": _only(0),
    "n_probs": _only(0, why="ask for logprobs"),
    "bad_words": _nothing(),
    "allowed_token_ids": _NULL,
    "logits_processors": _nothing(),
    "thinking_token_budget": _NULL,
    "truncate_prompt_tokens": FieldRule(
        lambda _: False, "a prompt is never cut; send one that the context holds"
    ),
    "truncation_side": _TAKEN,  # of what is not cut
    "n_keep": _TAKEN,
    "n_discard": _TAKEN,
    "prompt_logprobs": FieldRule(lambda _: False, "prompts are not scored"),
    "structured_outputs": FieldRule(lambda _: False, _NO_GRAMMAR),
    "guided_json": FieldRule(lambda _: False, _NO_GRAMMAR),
    "guided_regex": FieldRule(lambda _: False, _NO_GRAMMAR),
    "guided_choice": FieldRule(lambda _: False, _NO_GRAMMAR),
    "guided_grammar": FieldRule(lambda _: False, _NO_GRAMMAR),
    "guided_decoding_backend": _TAKEN,
    "guided_whitespace_pattern": _TAKEN,
    "grammar_lazy": _TAKEN,  # of no grammar
    "grammar_triggers": _TAKEN,
    "preserved_tokens": _TAKEN,
    "json_schema": FieldRule(lambda _: False, _NO_GRAMMAR),
    "grammar": _nothing(_NO_GRAMMAR),
    # Other servers' output.
    "skip_special_tokens": _only(True),
    "spaces_between_special_tokens": _TAKEN,  # none are shown
    "include_stop_str_in_output": _only(False),
    "detokenize": _only(True),
    "return_tokens_as_token_ids": _nothing(),
    "return_token_ids": _nothing(),
    "return_prompt_text": _nothing(),
    "return_tokens": _nothing(),
    "logprob_token_ids": _nothing("logprobs tells the likeliest tokens and the one that was drawn"),
    "post_sampling_probs": _only(False),
    "response_fields": _nothing("an answer comes whole"),
    "return_token_offsets": _TOLD,
    "timings_per_token": _TOLD,
    "return_progress": _TOLD,
    "stream_interval": _TOLD,  # an answer's pieces are as large as they come
    # Where and when it runs, which no answer depends on.
    "cache_prompt": _TAKEN,
    "id_slot": _TAKEN,
    "request_id": _TAKEN,
    "session_id": _TAKEN,
    "n_cache_reuse": _TAKEN,
    "backend_sampling": _TAKEN,
    "priority": _TOLD,
    "cache_salt": _TOLD,
    "lora": _nothing("an adapter is a model of its own here: ask for it by its name"),
    "kv_transfer_params": _NULL,
    "ec_transfer_params": _NULL,
    "vllm_xargs": _nothing(),
    "mm_processor_kwargs": _nothing(),
    "media_io_kwargs": _nothing(),
    "documents": _nothing(),
}
CHAT: Rules = {
    **COMMON,
    # OpenAI's.
    "tools": _nothing(_NO_TOOLS),
    "tool_choice": _only("none", "auto", why=_NO_TOOLS),
    "parallel_tool_calls": _TAKEN,  # of no tools
    "functions": _nothing(_NO_TOOLS),
    "function_call": _only("none", "auto", why=_NO_TOOLS),
    "response_format": _only({"type": "text"}),
    "modalities": _only(["text"]),
    "audio": _nothing("answers are text alone"),
    "prediction": _TOLD,  # makes an answer faster, and no other one
    "web_search_options": FieldRule(lambda _: False, "nothing is fetched for a client"),
    "moderation": FieldRule(lambda _: False, "nothing is moderated"),
    "reasoning_effort": _only("none"),
    "verbosity": _only("medium"),
    "store": _only(False, why="answers are not stored"),
    "service_tier": _TAKEN,  # there is one
    "prompt_cache_key": _TAKEN,  # prompts are cached anyway
    "prompt_cache_options": _TAKEN,
    "prompt_cache_retention": _TAKEN,
    # Other servers'.
    "chat_template": FieldRule(lambda _: False, "the model's own is used"),
    "chat_template_kwargs": _nothing("the model's template takes no arguments"),
    "add_generation_prompt": _only(True),
    "continue_final_message": _only(False),
    "add_special_tokens": _only(False),
    "echo": _only(False),
    "include_reasoning": _TAKEN,  # there is none beside the text
    "reasoning_format": _TAKEN,
    "reasoning_in_content": _TAKEN,
    "chat_format": _TAKEN,
    "parse_tool_calls": _TAKEN,
    "thinking_forced_open": _only(False),
}
COMPLETION: Rules = {
    **COMMON,
    "echo": _only(
        False,
        why="a prompt is neither sent back nor scored, so only false is supported. Likelihood "
        "tasks (lm-eval's loglikelihood and multiple_choice, which send echo with logprobs) can't "
        "run; its tasks that generate (generate_until) can",
    ),
    "prompt_embeds": _nothing("a prompt is text or token ids"),
    "suffix": _nothing("text is only made after a prompt, not before a suffix"),
    "add_special_tokens": _only(True),
    "response_format": _only({"type": "text"}),
}
STREAM_OPTIONS: Rules = {
    "include_obfuscation": _TAKEN,  # padding against traffic analysis: there is none
}
MESSAGE: Rules = {
    "name": _TOLD,  # templates have no place for it
    "refusal": _nothing("send it as content"),
    "tool_calls": _nothing(_NO_TOOLS),
    "tool_call_id": _nothing(_NO_TOOLS),
    "function_call": _nothing("functions are not supported"),
    "audio": _nothing("messages are text alone"),
    "annotations": _TOLD,
    "reasoning_content": _TOLD,  # templates leave earlier thoughts out
    "reasoning": _TOLD,
    "reasoning_details": _TOLD,
    "thinking": _TOLD,
    "cache_control": _TAKEN,  # prompts are cached anyway
    "prefix": _only(False, why="an assistant's message is never gone on with"),
    "partial": _only(False, why="an assistant's message is never gone on with"),
}
CONTENT_PART: Rules = {
    "cache_control": _TAKEN,
    "prompt_cache_breakpoint": _TAKEN,
    "annotations": _TOLD,
}
# One that Plinth has; without effect where no usage is asked for.
USAGE_IN_EACH = "stream_options.continuous_usage_stats"
# Labels of the metric: the rest is "unknown", since clients choose its names.
KNOWN_WITHOUT_EFFECT = frozenset({USAGE_IN_EACH}) | frozenset(
    f"{where}{name}"
    for where, rules in (
        ("", CHAT),
        ("", COMPLETION),
        ("stream_options.", STREAM_OPTIONS),
        ("messages.", MESSAGE),
        ("messages.content.", CONTENT_PART),
    )
    for name, rule in rules.items()
    if not rule.refusal and rule is not _TAKEN
)
