"""litellm: its OpenAI-compatible provider and the one for vLLM, whole, streamed, async and text."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import litellm

BASE, KEY, MODEL = sys.argv[1:4]
PARIS = "The capital of France is Paris."
ASKED: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
COMMON: dict[str, Any] = {"api_base": BASE, "api_key": KEY, "temperature": 0, "num_retries": 0}

said = []
for provider in ("openai", "hosted_vllm"):
    call = {**COMMON, "model": f"{provider}/{MODEL}"}
    answer = litellm.completion(messages=ASKED, **call)
    message = answer.choices[0].message
    assert message.content == PARIS, answer
    assert answer.usage.completion_tokens >= 7

    parts = [
        chunk.choices[0].delta.content or ""
        for chunk in litellm.completion(
            messages=ASKED, stream=True, stream_options={"include_usage": True}, **call
        )
        if chunk.choices
    ]
    assert "".join(parts) == PARIS

    # What came back goes back, as an application keeps its history.
    history = [*ASKED, message.model_dump(), {"role": "user", "content": "And of Italy?"}]
    further = asyncio.run(litellm.acompletion(messages=history, **call))
    assert "Rome" in further.choices[0].message.content
    said.append(f"{provider} {message.content!r} and {further.choices[0].message.content!r}")

text = litellm.text_completion(
    model=f"text-completion-openai/{MODEL}", prompt="One, two, three,", max_tokens=8, **COMMON
)
assert "four" in text.choices[0].text
print("; ".join([*said, f"text {text.choices[0].text!r}"]))
