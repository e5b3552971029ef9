"""What becomes of each field that a client can send, whether Plinth has it or not.

A field that is known and would change the answer is honoured, or refused by its name. One whose
value says what happens anyway is taken. One that has no effect here, and one that nobody knows, is
ignored, and the client is told so; with `gateway.unknown_fields: refuse` it is an error.

Known is all of OpenAI's schema, and what vLLM, llama.cpp and Transformers' servers have beside it:
https://platform.openai.com/docs/api-reference,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html,
https://github.com/ggml-org/llama.cpp/tree/master/tools/server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plinth.shared.errors import InvalidArgument

UnknownFields = Literal["ignore", "refuse"]
MAX_TOLD = 16  # names in a header
MAX_NAME_CHARS = 64


@dataclass(frozen=True)
class Rule:
    """A field that Plinth does not have. null always says what happens anyway."""

    inert: Callable[[Any], bool]  # whether a value does, too
    refusal: str = ""  # of any other value; empty: it has no effect, and is told


Rules = Mapping[str, Rule]


class Ignored:
    """The names of what one request brought for nothing."""

    def __init__(self, unknown: UnknownFields = "ignore") -> None:
        self._unknown = unknown
        self._names: dict[str, None] = {}
        self._more = 0

    def add(self, name: str, path: str, *, known: bool) -> None:
        """`name` is without indices ("messages.name"), `path` with them. InvalidArgument where
        fields without effect are refused."""
        if self._unknown == "refuse":
            what = "it has no effect here" if known else "this parameter is not known"
            raise InvalidArgument(
                f"{_shown(path)}: {what}; leave it out (gateway.unknown_fields is 'refuse')",
                reason="UNKNOWN_PARAMETER",
                field=_shown(path),
            )
        shown = _shown(name)
        if shown in self._names:
            return
        if len(self._names) >= MAX_TOLD:
            self._more += 1
        else:
            self._names[shown] = None

    @property
    def names(self) -> list[str]:
        """At most MAX_TOLD, in the order in which they came."""
        return list(self._names)

    @property
    def header(self) -> str:
        """For `x-plinth-ignored`: names, and how many more there are; empty without any."""
        more = [f"+{self._more}"] if self._more else []
        return ", ".join([*self._names, *more])


def sift(
    given: Mapping[str, Any],
    had: Collection[str],
    rules: Rules,
    ignored: Ignored,
    *,
    name: str = "",
    path: str = "",
) -> dict[str, Any]:
    """The fields of `given` that Plinth has (`had`). InvalidArgument for what is refused; what has
    no effect is added to `ignored`. `name` and `path` say where `given` stands in the body."""
    kept = {}
    for key, value in given.items():
        if key in had:
            kept[key] = value
            continue
        rule = rules.get(key)
        if rule is not None and (value is None or rule.inert(value)):
            continue
        if rule is not None and rule.refusal:
            raise unsupported(f"{path}{key}", rule.refusal)
        ignored.add(f"{name}{key}", f"{path}{key}", known=rule is not None)
    return kept


def unsupported(name: str, why: str) -> InvalidArgument:
    """A parameter whose being ignored would change what the client meant."""
    return InvalidArgument(f"{name}: {why}", reason="UNSUPPORTED_PARAMETER", field=name)


def _shown(name: str) -> str:
    """A client's name as a header can carry it."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "?" for c in name[:256])
    return plain[:MAX_NAME_CHARS] or "?"


# -- the tables ----------------------------------------------------------------------------------


def _only(*values: Any, why: str = "") -> Rule:
    """Any of `values` says what happens anyway."""
    shown = " or ".join(_json(value) for value in values)
    return Rule(
        lambda value: any(_same(value, one) for one in values), why or f"only {shown} is supported"
    )


def _nothing(why: str = "it is not supported") -> Rule:
    """An empty list, object or text, false and 0 say what happens anyway."""
    return Rule(lambda value: not value, why)


_NULL = Rule(lambda _: False, "it is not supported")
_TAKEN = Rule(lambda _: True)  # no answer depends on it, whatever it says
_TOLD = Rule(lambda value: not value)


def _same(value: Any, wanted: Any) -> bool:
    """JSON's equality: true is not 1, but 1 is 1.0."""
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


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
    "logit_bias": Rule(_no_bias, "it is not supported"),
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
    "do_sample": Rule(lambda value: value is True, "say temperature: 0 for a greedy answer"),
    "num_beams": _only(1),
    "min_tokens": _only(0),
    "n_probs": _only(0, why="ask for logprobs"),
    "bad_words": _nothing(),
    "allowed_token_ids": _NULL,
    "logits_processors": _nothing(),
    "thinking_token_budget": _NULL,
    "truncate_prompt_tokens": Rule(
        lambda _: False, "a prompt is never cut; send one that the context holds"
    ),
    "prompt_logprobs": Rule(lambda _: False, "prompts are not scored"),
    "structured_outputs": Rule(lambda _: False, _NO_GRAMMAR),
    "guided_json": Rule(lambda _: False, _NO_GRAMMAR),
    "guided_regex": Rule(lambda _: False, _NO_GRAMMAR),
    "guided_choice": Rule(lambda _: False, _NO_GRAMMAR),
    "guided_grammar": Rule(lambda _: False, _NO_GRAMMAR),
    "guided_decoding_backend": _TAKEN,
    "guided_whitespace_pattern": _TAKEN,
    "json_schema": Rule(lambda _: False, _NO_GRAMMAR),
    "grammar": _nothing(_NO_GRAMMAR),
    # Other servers' output.
    "skip_special_tokens": _only(True),
    "spaces_between_special_tokens": _TAKEN,  # none are shown
    "include_stop_str_in_output": _only(False),
    "detokenize": _only(True),
    "return_tokens_as_token_ids": _nothing(),
    "return_token_ids": _nothing(),
    "timings_per_token": _TOLD,
    "return_progress": _TOLD,
    # Where and when it runs, which no answer depends on.
    "cache_prompt": _TAKEN,
    "id_slot": _TAKEN,
    "request_id": _TAKEN,
    "priority": _TOLD,
    "cache_salt": _TOLD,
    "kv_transfer_params": _NULL,
    "vllm_xargs": _nothing(),
    "mm_processor_kwargs": _nothing(),
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
    "web_search_options": Rule(lambda _: False, "nothing is fetched for a client"),
    "moderation": Rule(lambda _: False, "nothing is moderated"),
    "reasoning_effort": _only("none"),
    "verbosity": _only("medium"),
    "store": _only(False, why="answers are not stored"),
    "service_tier": _TAKEN,  # there is one
    "prompt_cache_key": _TAKEN,  # prompts are cached anyway
    "prompt_cache_options": _TAKEN,
    "prompt_cache_retention": _TAKEN,
    # Other servers'.
    "chat_template": Rule(lambda _: False, "the model's own is used"),
    "chat_template_kwargs": _nothing("the model's template takes no arguments"),
    "add_generation_prompt": _only(True),
    "continue_final_message": _only(False),
    "add_special_tokens": _only(False),
    "echo": _only(False),
    "include_reasoning": _TAKEN,  # there is none beside the text
    "reasoning_format": _TAKEN,
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
    "suffix": _nothing("text is only made after a prompt, not before a suffix"),
    "add_special_tokens": _only(True),
    "response_format": _only({"type": "text"}),
}
STREAM_OPTIONS: Rules = {
    "include_obfuscation": _TAKEN,  # padding against traffic analysis: there is none
    "continuous_usage_stats": _TOLD,  # usage comes at the end
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
# Labels of the metric: the rest is "unknown", since clients choose its names.
KNOWN_WITHOUT_EFFECT = frozenset(
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
