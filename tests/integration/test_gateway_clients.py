"""What other people's clients send, word for word, is answered; test_clients.py runs the clients.

tests/clients/requests.jsonl has one request of each shape that the scripts beside it made a client
send, as a proxy wrote them down.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gateway_stages import Stack, running_stack
from patience import PATIENCE_S

RECORDED = Path(__file__).parents[1] / "clients" / "requests.jsonl"
REQUESTS = [json.loads(line) for line in RECORDED.read_text().splitlines()]
# What a client sends for nothing, which it is told by x-plinth-ignored.
IGNORED = {
    "langchain-openai": {"messages.name"},
    "autogen": {"messages.name"},
    "lm-eval-0.4.9": {"messages.type"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path_factory.mktemp("gateway"), redis_server) as stack:
        yield stack


def _for_scripted_shards(body: dict[str, Any]) -> dict[str, Any]:
    """The request for the model that is served here, whose ids end early."""
    prompts = body.get("prompt")
    if isinstance(prompts, list) and isinstance(prompts[0], list):
        body = {**body, "prompt": [[token % 256 for token in prompt] for prompt in prompts]}
    return {**body, "model": "chat"}


def _sent(body: dict[str, Any], field: str) -> bool:
    """Whether the body has the field; its name as x-plinth-ignored writes it."""
    outer, _, inner = field.partition(".")
    values = body.get(outer) or []
    return any(inner in value for value in (values if isinstance(values, list) else [values]))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "request_", REQUESTS, ids=[f"{r['client']}-{n}" for n, r in enumerate(REQUESTS)]
)
async def test_it_is_answered(gateway: Stack, request_: dict[str, Any]) -> None:
    body = _for_scripted_shards(request_["body"])
    headers = {"authorization": f"Bearer {gateway.key}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as http:
        answer = await http.post(request_["path"], json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.rstrip().endswith("data: [DONE]")
        chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
        assert not any("error" in chunk for chunk in chunks)
    else:
        prompts = body.get("prompt")
        assert len(answer.json()["choices"]) == (len(prompts) if isinstance(prompts, list) else 1)
    told = set(filter(None, answer.headers.get("x-plinth-ignored", "").split(", ")))
    assert told == {field for field in IGNORED.get(request_["client"], ()) if _sent(body, field)}


def test_the_recorded_requests_hold_what_was_once_refused() -> None:
    """Each of these failed a client; a new recording without one would hold less."""
    bodies = [request["body"] for request in REQUESTS]
    messages = [message for body in bodies for message in body.get("messages", [])]
    assert {"name", "type", "tool_calls", "refusal"} <= {field for m in messages for field in m}
    assert any("\x1b" in message["content"] for message in messages)
    assert any("continuous_usage_stats" in (body.get("stream_options") or {}) for body in bodies)
    assert max(len(body["prompt"]) for body in bodies if isinstance(body.get("prompt"), list)) > 8
