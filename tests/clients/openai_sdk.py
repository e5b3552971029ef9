"""OpenAI's own SDK: sync, async, streamed, raw, and a conversation that sends back what it got."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import openai

BASE, KEY, MODEL = sys.argv[1:4]
CAPITAL = {"role": "user", "content": "What is the capital of France?"}
PARIS = "The capital of France is Paris."
GREEDY: dict[str, Any] = {"model": MODEL, "messages": [CAPITAL], "temperature": 0}


def sync(client: openai.OpenAI) -> str:
    assert MODEL in [model.id for model in client.models.list()]
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.message.content == PARIS
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == PARIS
    assert answer.usage is not None and answer.usage.completion_tokens >= 7

    # The whole message goes back, with each field that the SDK gave it.
    history = [CAPITAL, choice.message, {"role": "user", "content": "And of Italy?"}]
    further = client.chat.completions.create(**{**GREEDY, "messages": history})
    assert "Rome" in (further.choices[0].message.content or "")
    dumped = [CAPITAL, choice.message.model_dump(), history[2]]
    again = client.chat.completions.create(**{**GREEDY, "messages": dumped})
    assert again.choices[0].message.content == further.choices[0].message.content

    both = client.completions.create(
        model=MODEL, prompt=["One, two, three,", "Monday, Tuesday,"], max_tokens=8, temperature=0
    )
    assert "four" in both.choices[0].text and "Wednesday" in both.choices[1].text
    try:
        client.chat.completions.create(**{**GREEDY, "model": "no-such-model"})
    except openai.NotFoundError as error:
        assert "no-such-model" in error.message and error.request_id
    else:
        raise AssertionError("a model that isn't there was served")
    return f"sync {choice.message.content!r}, then {further.choices[0].message.content!r}"


async def concurrent() -> str:
    async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(**GREEDY) for _ in range(8))
        )
        assert [answer.choices[0].message.content for answer in answers] == [PARIS] * 8
        parts = []
        stream = await client.chat.completions.create(**GREEDY, stream=True)
        async for chunk in stream:
            parts += [choice.delta.content or "" for choice in chunk.choices]
        assert "".join(parts) == PARIS
    return f"async {len(answers)} at once and a stream"


def streamed(client: openai.OpenAI) -> str:
    parts, usage = [], None
    for chunk in client.chat.completions.create(
        **GREEDY, stream=True, stream_options={"include_usage": True}
    ):
        parts += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(parts) == PARIS and usage is not None
    with client.chat.completions.stream(**GREEDY) as events:  # the SDK's accumulating helper
        final = events.get_final_completion()
    assert final.choices[0].message.content == PARIS
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(
            model=MODEL, prompt="One, two, three,", max_tokens=8, temperature=0, stream=True
        )
    )
    assert "four" in text
    return f"stream of {len(parts)} parts, {usage.total_tokens} tokens"


def raw(client: openai.OpenAI) -> str:
    response = client.chat.completions.with_raw_response.create(**GREEDY)
    assert response.status_code == 200 and response.headers["x-request-id"]
    assert response.parse().choices[0].message.content == PARIS
    with client.chat.completions.with_streaming_response.create(**GREEDY, stream=True) as live:
        lines = [line for line in live.iter_lines() if line]
    assert lines[0].startswith("data: {") and lines[-1] == "data: [DONE]"
    return f"raw {response.status_code}, {len(lines)} events"


with openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0) as shared:
    print("; ".join([sync(shared), streamed(shared), raw(shared), asyncio.run(concurrent())]))
