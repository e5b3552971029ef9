"""Every field is honoured, taken, told or refused by its name; no value of any field is a bug."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params as openai_completion
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as openai_chat

from plinth.gateway.openai.field_rules import MAX_TOLD, Ignored
from plinth.gateway.openai.known_fields import (
    CHAT,
    COMPLETION,
    CONTENT_PART,
    KNOWN_WITHOUT_EFFECT,
    MESSAGE,
    STREAM_OPTIONS,
)
from plinth.gateway.openai.request_body import StreamOptions
from plinth.gateway.openai.requests import ChatBody, CompletionBody
from plinth.shared.errors import InvalidArgument

USER = {"role": "user", "content": "hi"}
CHAT_OK: dict[str, Any] = {"model": "chat", "messages": [USER]}
COMPLETION_OK: dict[str, Any] = {"model": "chat", "prompt": "hi"}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.sampled_from([-1, 0, 1, 2, 0.0, 1.0, -0.5, 1e-50, 1e300, "", "none", "auto", "text"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=5), v, max_size=4)
)
CHAT_FIELDS = sorted({*CHAT, *ChatBody.model_fields, "messages", "nobody_knows"})
COMPLETION_FIELDS = sorted({*COMPLETION, *CompletionBody.model_fields, "prompt", "nobody_knows"})


def outcome(kind: type[ChatBody] | type[CompletionBody], given_: dict[str, Any], field: str) -> str:
    """ "taken", "told" or "refused" by the field's name; anything else fails."""
    try:
        body = kind.of(given_)
    except InvalidArgument as error:
        assert error.field.split(".")[0] == field or error.field in ("stream", "best_of"), error
        assert error.field in error.message
        return "refused"
    body.sampling().SerializeToString()
    _ = body.stops, body.selection, body.samples, body.asked_tokens, body.who
    return "told" if body.ignored.names else "taken"


@given(st.sampled_from(CHAT_FIELDS), VALUES)
def test_any_value_in_any_field_of_a_chat(field: str, value: Any) -> None:
    result = outcome(ChatBody, {**CHAT_OK, field: value}, field)
    if field == "nobody_knows":
        assert result == "told"


@given(st.sampled_from(COMPLETION_FIELDS), VALUES)
def test_any_value_in_any_field_of_a_completion(field: str, value: Any) -> None:
    outcome(CompletionBody, {**COMPLETION_OK, field: value}, field)


@given(st.sampled_from([*MESSAGE, "role", "content", "nobody_knows"]), VALUES)
def test_any_value_in_any_field_of_a_message(field: str, value: Any) -> None:
    outcome(ChatBody, {**CHAT_OK, "messages": [USER, {**USER, field: value}]}, "messages")


@given(st.sampled_from([*CONTENT_PART, "type", "text", "nobody_knows"]), VALUES)
def test_any_value_in_any_field_of_a_part(field: str, value: Any) -> None:
    part = {"type": "text", "text": "x", field: value}
    body = {**CHAT_OK, "messages": [{"role": "user", "content": [part]}]}
    outcome(ChatBody, body, "messages")


@given(st.sampled_from([*STREAM_OPTIONS, *StreamOptions.model_fields, "nobody_knows"]), VALUES)
def test_any_value_in_any_stream_option(field: str, value: Any) -> None:
    body = {**CHAT_OK, "stream": True, "stream_options": {field: value}}
    outcome(ChatBody, body, "stream_options")


@pytest.mark.parametrize("field", [*CHAT, *MESSAGE])
def test_null_is_nothing(field: str) -> None:
    message = {**USER, field: None} if field in MESSAGE else USER
    body = {**CHAT_OK, "messages": [message]}
    if field in CHAT:
        body[field] = None
    assert ChatBody.of(body).ignored.header == ""


def fields(kind: Any) -> set[str]:
    return set(typing.get_type_hints(kind))


@pytest.mark.parametrize(
    ("openais", "known"),
    [
        (
            openai_chat.CompletionCreateParamsNonStreaming,
            {*CHAT, "messages", *ChatBody.model_fields},
        ),
        (openai_chat.CompletionCreateParamsStreaming, {*CHAT, "messages", *ChatBody.model_fields}),
        (
            openai_completion.CompletionCreateParamsNonStreaming,
            {*COMPLETION, "prompt", *CompletionBody.model_fields},
        ),
        (ChatCompletionStreamOptionsParam, {*STREAM_OPTIONS, *StreamOptions.model_fields}),
        (ChatCompletionUserMessageParam, {*MESSAGE, "role", "content"}),
        (ChatCompletionSystemMessageParam, {*MESSAGE, "role", "content"}),
        (ChatCompletionDeveloperMessageParam, {*MESSAGE, "role", "content"}),
        (ChatCompletionAssistantMessageParam, {*MESSAGE, "role", "content"}),
        (ChatCompletionContentPartTextParam, {*CONTENT_PART, "type", "text"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_all_that_the_official_client_can_send_is_known(openais: Any, known: set[str]) -> None:
    assert fields(openais) - known == set()


# Of the fields that vLLM's and llama.cpp's servers take, those that change what comes back: each is
# honoured, or refused by its name.
# https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html,
# https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
ELSEWHERE = [
    "top_k",
    "min_p",
    "repetition_penalty",
    "length_penalty",
    "use_beam_search",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "truncate_prompt_tokens",
    "prompt_logprobs",
    "bad_words",
    "allowed_token_ids",
    "add_special_tokens",
    "structured_outputs",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "add_generation_prompt",
    "return_tokens_as_token_ids",
    "return_token_ids",
    "vllm_xargs",
    "kv_transfer_params",
    "ec_transfer_params",
    "thinking_token_budget",
    "repetition_detection",
    "logprob_token_ids",
    "watermarking",
    "return_prompt_text",
    "echo",
    "dynatemp_range",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "repeat_penalty",
    "dry_multiplier",
    "mirostat",
    "grammar",
    "json_schema",
    "n_predict",
    "n_indent",
    "n_cmpl",
    "n_probs",
    "min_keep",
    "t_max_predict_ms",
    "samplers",
    "lora",
    "post_sampling_probs",
    "response_fields",
    "return_tokens",
    "adaptive_target",
]


def test_what_changes_an_answer_elsewhere_is_never_ignored_as_a_whole() -> None:
    had = set(ChatBody.model_fields)
    assert [f for f in ELSEWHERE if f not in had and not (f in CHAT and CHAT[f].refusal)] == []
    assert COMPLETION["prompt_embeds"].refusal


SAYS_NOTHING: list[dict[str, Any]] = [
    {"min_p": 0},
    {"min_p": 0.0, "repetition_penalty": 1.0, "top_k": -1, "seed": -1},
    {"chat_template_kwargs": {}},
    {"chat_template_kwargs": None},
    {"reasoning_effort": "none", "verbosity": "medium", "service_tier": "auto", "store": False},
    {"logit_bias": {}},
    {"logit_bias": {"50256": 0}},
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "functions": []},
    {"stream_options": None},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"max_tokens": 5, "max_completion_tokens": 5},
    {"top_n_sigma": -1, "adaptive_target": -1.0, "t_max_predict_ms": -1, "lora": [], "n_keep": 0},
    {"watermarking": False, "session_id": "s", "truncation_side": "left"},
    {"messages": [{**USER, "cache_control": {"type": "ephemeral"}}]},
    {"messages": [{**USER, "tool_calls": [], "reasoning_content": None, "function_call": None}]},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}, USER]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": 1}]}
        ]
    },
]


@pytest.mark.parametrize("change", SAYS_NOTHING, ids=str)
def test_a_field_that_says_what_happens_anyway_is_taken(change: dict[str, Any]) -> None:
    assert ChatBody.of({**CHAT_OK, **change}, "refuse").ignored.header == ""


TOLD: list[tuple[dict[str, Any], str]] = [
    ({"wibble": 1}, "wibble"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"messages": [{**USER, "name": "critic"}] * 3}, "messages.name"),
    ({"messages": [{**USER, "type": "message"}]}, "messages.type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
        "messages.content.x",
    ),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
    ),
    (
        {"messages": [{**USER, "role": "assistant", "reasoning_content": "hm"}]},
        "messages.reasoning_content",
    ),
    ({"a\r\nx-evil: 1": 1, "é": 2}, "a??x-evil??1, ?"),
]


@pytest.mark.parametrize(("change", "header"), TOLD, ids=lambda value: str(value)[:40])
def test_a_field_without_effect_is_told_and_can_be_refused(
    change: dict[str, Any], header: str
) -> None:
    assert ChatBody.of({**CHAT_OK, **change}).ignored.header == header
    with pytest.raises(InvalidArgument) as caught:
        ChatBody.of({**CHAT_OK, **change}, "refuse")
    assert caught.value.reason == "UNKNOWN_PARAMETER"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"min_p": 0.05}, "min_p"),
    ({"top_n_sigma": 1.5}, "top_n_sigma"),
    ({"samplers": ["top_k"]}, "samplers"),
    ({"n_predict": 5}, "n_predict"),
    ({"lora": [{"id": 0, "scale": 1}]}, "lora"),
    ({"repetition_detection": {}}, "repetition_detection"),
    ({"logprob_token_ids": [1]}, "logprob_token_ids"),
    ({"repetition_penalty": 1.1}, "repetition_penalty"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"guided_json": {}}, "guided_json"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": [{**USER, "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages.1.role"),
]


@pytest.mark.parametrize(("change", "field"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_field_that_would_change_the_answer_is_refused_by_name(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ChatBody.of({**CHAT_OK, **change})
    assert caught.value.field == field
    assert field in caught.value.message


def test_echo_says_what_can_run_instead() -> None:
    with pytest.raises(InvalidArgument, match="generate_until"):
        CompletionBody.of({**COMPLETION_OK, "echo": True, "logprobs": 1})
    CompletionBody.of({**COMPLETION_OK, "echo": False})


def test_a_header_stays_short_however_much_is_ignored() -> None:
    ignored = Ignored()
    for number in range(1_000):
        ignored.add(f"{number:04}" * 200, "", known=False)
    assert len(ignored.header) < 2_000
    assert ignored.header.endswith(f"+{1_000 - MAX_TOLD}")


def test_labels_of_the_metric_are_known_names() -> None:
    assert {"messages.name", "stream_options.continuous_usage_stats"} <= KNOWN_WITHOUT_EFFECT
    assert len(KNOWN_WITHOUT_EFFECT) < 32


@pytest.mark.parametrize(
    "field", ["max_tokens", "max_completion_tokens", "n", "seed", "top_k", "best_of"]
)
def test_an_integer_may_be_written_with_a_point(field: str) -> None:
    """As JSON has one kind of number: 3.0 is 3, which some languages write so."""
    assert getattr(ChatBody.of({**CHAT_OK, field: 3.0}), field) == 3
    for wrong in (3.5, True, "3"):
        with pytest.raises(InvalidArgument) as caught:
            ChatBody.of({**CHAT_OK, field: wrong})
        assert caught.value.field == field


def test_open_tokens_leave_the_other_name_its_say() -> None:
    for given_, asked in (((-1, 5), 5), ((5, -1), 5), ((-1, -1), None), ((-1, None), None)):
        body = {"max_tokens": given_[0], "max_completion_tokens": given_[1]}
        assert ChatBody.of({**CHAT_OK, **body}).asked_tokens == asked


def test_no_logprobs_may_be_said_by_false() -> None:
    assert CompletionBody.of({**COMPLETION_OK, "logprobs": False}).alternatives is None
    with pytest.raises(InvalidArgument, match="logprobs"):
        CompletionBody.of({**COMPLETION_OK, "logprobs": True})


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_what_is_no_text_is_told_by_the_name_it_came_under(field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ChatBody.of({**CHAT_OK, field: "a\0b"})
    assert caught.value.field == field
