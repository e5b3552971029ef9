"""What a client can send wrongly ends in OpenAI's error body, and costs no shard anything."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gateway_stages import Stack, running_stack
from patience import PATIENCE_S

USER = {"role": "user", "content": "hi"}
OK: dict[str, Any] = {"model": "chat", "messages": [USER]}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    """One stack for all of them, in their own loop: gRPC's events go astray between the loops of
    several threads, and a stack that then can't stop haunts every test behind it."""
    folder = tmp_path_factory.mktemp("gateway")
    async with running_stack(folder, redis_server, max_body_bytes=20_000) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def http(gateway: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.http() as client:
        yield client


BAD_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"max_tokens": 0}, "max_tokens", "invalid_max_tokens"),
    ({"max_tokens": -2}, "max_tokens", "invalid_max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_max_tokens"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_value"),
    ({"model": 3}, "model", "invalid_value"),
    ({"model": ""}, "model", "invalid_value"),
    ({"messages": []}, "messages", "message_count"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_parameter"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "invalid_value"),
    (
        {"messages": [{**USER, "tool_calls": [{}]}]},
        "messages.0.tool_calls",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages.0.content.0.type",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": "a\x00b"}]},
        "messages.0.content",
        "control_character",
    ),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"n": 9}, "n", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"stop": ["x"] * 9}, "stop", "too_many_stops"),
    ({"stop": "x" * 257}, "stop.0", "stop_length"),
    ({"stop": [3]}, "stop.0", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_logprobs"),
    ({"seed": 1 << 64}, "seed", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_stream_options"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"logit_bias": {"5": -100}}, "logit_bias", "unsupported_parameter"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
    ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
]


@pytest.mark.parametrize(("change", "param", "code"), BAD_CHAT, ids=lambda value: str(value)[:50])
async def test_bad_chat_requests(
    http: httpx.AsyncClient, gateway: Stack, change: dict[str, Any], param: str, code: str
) -> None:
    before = len(gateway.shard.requests)
    answer = await http.post("/v1/chat/completions", json={**OK, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
    assert error["type"] == "invalid_request_error"
    assert param.split(".", maxsplit=1)[0] in error["message"]
    assert len(gateway.shard.requests) == before


BAD_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": []}, "prompt", "empty_prompt"),
    ({"prompt": ""}, "prompt", "empty_prompt"),
    ({"prompt": ["a"] * 257, "n": 8}, "prompt", "too_many_samples"),
    ({"prompt": ["a"] * 2049}, "prompt", "prompt_count"),
    ({"prompt": [-1]}, "prompt.0", "invalid_value"),
    ({"prompt": [1.5]}, "prompt.0", "invalid_value"),
    ({"prompt": None}, "prompt", "invalid_value"),
    ({"prompt": "a", "echo": True}, "echo", "unsupported_parameter"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
    ({"prompt": "a", "n": 3, "best_of": 2}, "best_of", "invalid_best_of"),
    ({"prompt": "a", "best_of": 9}, "best_of", "invalid_value"),
    ({"prompt": "a", "best_of": 0}, "best_of", "invalid_value"),
    ({"prompt": "a", "best_of": 2, "stream": True}, "stream", "best_of_stream"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "invalid_value"),
    ({"prompt": "a\u0000"}, "prompt", "control_character"),
]


@pytest.mark.parametrize(("change", "param", "code"), BAD_COMPLETIONS, ids=lambda v: str(v)[:50])
async def test_bad_completion_requests(
    http: httpx.AsyncClient, change: dict[str, Any], param: str, code: str
) -> None:
    answer = await http.post("/v1/completions", json={"model": "chat", **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"text"', "invalid_json", None),
        (b'{"model": NaN}', "invalid_json", None),
        (b"[" * 9_000, "invalid_json", None),
        (b'{"a":' * 3_000, "invalid_json", None),
        (b'{"n": ' + b"9" * 9_000 + b"}", "invalid_json", None),
        (b'{"model": "\xff"}', "invalid_utf8", None),
        (
            b'{"model":"chat","messages":[{"role":"user","content":"\\ud800"}]}',
            "invalid_unicode",
            "messages.0.content",
        ),
        (b'{"model":"chat","messages":[],"user":"\\uDC00"}', "invalid_unicode", "user"),
    ],
)
async def test_bytes_that_are_no_request(
    http: httpx.AsyncClient, raw: bytes, code: str, param: str | None
) -> None:
    answer = await http.post("/v1/chat/completions", content=raw)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error


async def test_a_body_over_the_limit(http: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_000

    for content in (b"x" * 20_001, parts()):
        answer = await http.post("/v1/chat/completions", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


async def test_a_prompt_longer_than_the_context(http: httpx.AsyncClient) -> None:
    body = {"model": "chat", "prompt": "x" * 5_000, "max_tokens": 1}
    answer = await http.post("/v1/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "4096" in error["message"]
    assert "5000" in error["message"]


async def test_more_tokens_than_the_context_leaves_are_cut(
    http: httpx.AsyncClient, gateway: Stack
) -> None:
    body = {"model": "chat", "prompt": "x" * 4_090, "max_tokens": 100, "seed": 0}
    answer = await http.post("/v1/completions", json=body)
    assert answer.json()["usage"]["completion_tokens"] == 6
    assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_too_many_tokens_together(http: httpx.AsyncClient, gateway: Stack) -> None:
    async with gateway.also_serving("long", context=1_000_000):
        answer = await http.post(
            "/v1/chat/completions", json={**OK, "model": "long", "n": 8, "max_tokens": 100_000}
        )
    assert answer.json()["error"]["code"] == "too_many_tokens"


async def test_a_whole_answer_is_cut_to_the_log_probs_that_are_held(
    http: httpx.AsyncClient, gateway: Stack
) -> None:
    """A stream isn't, nor what shows no log-probs."""
    body = {**OK, "model": "long", "max_tokens": 100_000, "n": 2}
    shown = {"logprobs": True, "top_logprobs": 20}
    gateway.shard.end_after = 2
    async with gateway.also_serving("long", context=1_000_000):
        for more in ({**shown}, {**shown, "stream": True}, {}):
            gateway.shard.requests.clear()
            answer = await http.post("/v1/chat/completions", json={**body, **more})
            assert answer.status_code == 200
            cut = bool(more) and not more.get("stream")
            most = {request.sampling.max_tokens for request in gateway.shard.requests}
            assert most == {262_144 // 21 // 2 if cut else 100_000}


async def test_parameters_that_change_nothing_are_accepted(http: httpx.AsyncClient) -> None:
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "store": False,
        "logprobs": False,
        "n": None,
        "stop": None,
        "max_tokens": 1,
    }
    answer = await http.post("/v1/chat/completions", json={**OK, **harmless})
    assert answer.status_code == 200, answer.text


async def test_parts_and_roles(http: httpx.AsyncClient, gateway: Stack) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "ok", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    body = {"model": "chat", "messages": messages, "max_tokens": 1}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    prompt = bytes(gateway.shard.requests[-1].input[0].tokens.ids).decode()
    assert prompt == "<system>be brief\n<assistant>ok\n<user>ab\n<assistant>"


async def test_without_a_key_only_health_and_metrics_answer(gateway: Stack) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as client:
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/models/chat"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/completions"),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "missing_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200


async def test_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v2/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    answer = await http.get("/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_metrics_have_the_names_of_the_field(http: httpx.AsyncClient) -> None:
    await http.post("/v1/chat/completions", json={**OK, "max_tokens": 3})
    page = (await http.get("/metrics")).text
    for name in (
        'plinth_request_ttft_seconds_count{model="chat"}',
        'plinth_request_itl_seconds_count{model="chat"}',
        'plinth_tokens_total{kind="completion",model="chat",tenant="default"}',
        'plinth_requests_total{api="rest",code="200",path="/v1/chat/completions"',
    ):
        assert name in page


async def test_a_stream_that_fails_before_its_first_token_has_a_status(
    http: httpx.AsyncClient, gateway: Stack
) -> None:
    gateway.shard.full = True
    try:
        answer = await http.post("/v1/chat/completions", json={**OK, "stream": True})
        assert answer.status_code == 429
    finally:
        gateway.shard.full = False


async def test_events_are_framed_as_openai_frames_them(http: httpx.AsyncClient) -> None:
    body = {**OK, "stream": True, "max_tokens": 3, "seed": 0}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [e for e in answer.text.split("\n\n") if e]
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)
    assert json.loads(events[0][6:])["object"] == "chat.completion.chunk"
